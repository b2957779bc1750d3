package runtimetest

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

// The users and variables of the image that internal/testutil makes.
type fakeUser struct {
	uid, gid int
	groups   []int
}

func imageEnv() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "IMAGE_VARIABLE=from image"}
}

func lookUpUser(text string) (fakeUser, error) {
	known := map[string]fakeUser{
		"root": {0, 0, []int{0}}, "app": {1000, 1000, []int{1000, 2000}}, "other": {1001, 1001, []int{1001}},
	}
	groups := map[string]int{"root": 0, "app": 1000, "extra": 2000, "other": 1001}
	name, group, withGroup := strings.Cut(text, ":")
	if name == "" {
		name = "root"
	}
	user, found := known[name]
	if uid, err := strconv.Atoi(name); err == nil {
		user, found = fakeUser{uid, 0, []int{0}}, true
		for _, u := range known {
			if u.uid == uid {
				user = u
			}
		}
	}
	if withGroup {
		gid, foundGroup := groups[group]
		if n, err := strconv.Atoi(group); err == nil {
			gid, foundGroup = n, true
		}
		user.gid, user.groups, found = gid, []int{gid}, found && foundGroup
	}
	if !found {
		return fakeUser{}, problem.New(problem.UserNotFound, "the image has no user %q", text).WithField("spec.user")
	}
	return user, nil
}

func (c *fakeContainer) running() bool { return c.process != nil && c.process.exit == nil }

func (c *fakeContainer) status() runtime.ContainerStatus {
	status := runtime.ContainerStatus{ID: c.ID, Image: c.Image, Labels: c.Labels, Running: c.running()}
	if c.process != nil {
		status.OOMKills = c.process.oomKills
	}
	if status.Running {
		status.PID, status.Paused = c.process.pid, c.process.paused
	} else if c.process != nil {
		exit := *c.process.exit
		status.Exit = &exit
	}
	return status
}

// eaten is how much memory its program has in use, in bytes.
func (c *fakeContainer) eaten() int64 {
	if i := slices.Index(c.Command, "eat-memory"); i >= 0 && i+1 < len(c.Command) {
		n, _ := strconv.ParseInt(c.Command[i+1], 10, 64) // testprog would not start
		return n
	}
	return 0
}

// tooMuch says whether a command that eats so many bytes is beyond the limit.
func (c *fakeContainer) tooMuch(text string) bool {
	n, _ := strconv.ParseInt(text, 10, 64) // testprog would not start
	return c.Resources.MemoryBytes > 0 && n > c.Resources.MemoryBytes
}

// argv is what a container runs; as the image says where it says nothing.
func argv(c runtime.Container) []string {
	entrypoint, command := c.Entrypoint, c.Command
	if len(entrypoint) == 0 {
		entrypoint = []string{"/bin/testprog"}
		if len(command) == 0 {
			command = []string{"sleep"}
		}
	}
	return slices.Concat(entrypoint, command)
}

// environment is the image's, the container's and the command's, last wins.
func (c *fakeContainer) environment(more []string) []string {
	var env []string
	for _, variable := range slices.Concat(imageEnv(), c.Env, more) {
		name, _, _ := strings.Cut(variable, "=")
		env = slices.DeleteFunc(env, func(v string) bool { return strings.HasPrefix(v, name+"=") })
		env = append(env, variable)
	}
	return env
}

// program finds testprog's arguments in a command line.
func program(argv []string) ([]string, error) {
	switch argv[0] {
	case "/bin/testprog", "testprog":
		return argv[1:], nil
	case "/bin/true", "true", "/bin/cat", "cat":
		return append([]string{path.Base(argv[0])}, argv[1:]...), nil
	default:
		return nil, fmt.Errorf("exec: %q: executable file not found in $PATH", argv[0])
	}
}

// commands splits at ";".
func commands(args []string) iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		for len(args) > 0 {
			command, rest := args, []string(nil)
			if i := slices.Index(args, ";"); i >= 0 {
				command, rest = args[:i], args[i+1:]
			}
			if len(command) == 0 || !yield(command) {
				return
			}
			args = rest
		}
	}
}

type execution struct {
	user           fakeUser
	env            []string
	workdir        string
	stdin          []byte
	stdout, stderr bytes.Buffer
}

// exec runs a command that ends by itself and returns its exit code.
func (c *fakeContainer) exec(command []string, x *execution) int {
	args := command[1:]
	switch command[0] {
	case "true", "ps", "leave":
	case "exit":
		code, _ := strconv.Atoi(args[0])
		return code
	case "echo":
		fmt.Fprintln(&x.stdout, strings.Join(args, " "))
	case "stderr":
		fmt.Fprintln(&x.stderr, strings.Join(args, " "))
	case "env":
		fmt.Fprintln(&x.stdout, strings.Join(x.env, "\n"))
	case "id":
		fmt.Fprintf(&x.stdout, "uid=%d gid=%d groups=%v\n", x.user.uid, x.user.gid, x.user.groups)
	case "pwd":
		fmt.Fprintln(&x.stdout, path.Join("/", x.workdir))
	case "hostname":
		fmt.Fprintln(&x.stdout, c.Hostname)
	case "write":
		c.files.write(args[0], strings.Join(args[1:], " "))
	case "rm":
		c.files.remove(args[0])
	case "cat":
		if len(args) == 0 {
			x.stdout.Write(x.stdin)
		}
		for _, file := range args {
			text, found := c.files.read(file)
			if !found {
				fmt.Fprintf(&x.stderr, "testprog: open %s: no such file or directory\n", file)
				return 1
			}
			x.stdout.WriteString(text)
		}
	case "flood":
		n, _ := strconv.Atoi(args[0])
		x.stdout.Write(bytes.Repeat([]byte("x"), n))
		x.stderr.Write(bytes.Repeat([]byte("x"), n))
	case "crash":
		return 134
	default:
		fmt.Fprintf(&x.stderr, "testprog: no command %q\n", command)
		return 64
	}
	return 0
}

// Run runs a pretended command.
func (e *FakeEngine) Run(ctx context.Context, id string, cmd runtime.Command) (result runtime.CommandResult, err error) {
	var first *fakeProcess
	var wait time.Duration
	err = e.call("Run", func() error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c := e.containers[id]
		if c == nil || !c.running() {
			return fmt.Errorf("run in container %s: it does not run: %w", id, errdefs.ErrNotFound)
		}
		if c.process.paused {
			return fmt.Errorf("run in container %s: %w", id, runtime.ErrPaused)
		}
		first = c.process
		user := c.user
		if cmd.User != "" {
			if user, err = lookUpUser(cmd.User); err != nil {
				return err
			}
		}
		args, err := c.program(cmd.Argv)
		if err != nil {
			return fmt.Errorf("run in container %s: %w", id, err)
		}
		if tooLong(cmd.Argv) {
			return fmt.Errorf("run in container %s: %w", id, runtime.TooLong())
		}
		x := &execution{user: user, env: c.environment(cmd.Env), workdir: c.Workdir, stdin: cmd.Stdin}
		if cmd.Workdir != "" {
			x.workdir = cmd.Workdir
		}
		for command := range commands(args) {
			if command[0] == "sleep" || command[0] == "ignore-term" || command[0] == "tick" {
				wait = 365 * 24 * time.Hour
				if len(command) > 1 {
					seconds, _ := strconv.Atoi(command[1])
					wait = time.Duration(seconds) * time.Second
				}
				break
			}
			if command[0] == "eat-memory" && len(command) > 1 && c.tooMuch(command[1]) {
				e.oom(c)
				result.ExitCode = 137
				break
			}
			if result.ExitCode = c.exec(command, x); result.ExitCode != 0 {
				break
			}
		}
		result.Stdout, result.StdoutTruncated = limit(x.stdout.Bytes(), cmd.OutputLimit)
		result.Stderr, result.StderrTruncated = limit(x.stderr.Bytes(), cmd.OutputLimit)
		return nil
	})
	if err != nil || wait == 0 {
		return result, err
	}
	parent := ctx
	if cmd.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, cmd.Timeout)
		defer cancel()
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return result, nil
	case <-first.done:
		result.ExitCode = 137
		return result, nil
	case <-ctx.Done():
		if parent.Err() != nil {
			return result, context.Cause(parent)
		}
		return result, problem.New(problem.CommandTimeout, "the command did not end within %s and was killed", cmd.Timeout)
	}
}

// program finds testprog's arguments in a command line for a container that runs,
// or tells what a runtime says of one that it does not find, or not run.
func (c *fakeContainer) program(argv []string) ([]string, error) {
	args, err := program(argv)
	if err == nil {
		return args, nil
	}
	if _, found := c.files.read(argv[0]); found || argv[0] == "/bin" {
		return nil, problem.New(problem.CommandNotExecutable, "the command %q cannot be run", argv[0]).WithField("argv").
			WithTold(fmt.Errorf("OCI runtime exec failed: exec failed: exec: %q: permission denied", argv[0]))
	}
	return nil, problem.New(problem.CommandNotFound, "the command %q is not there", argv[0]).WithField("argv").
		WithTold(fmt.Errorf("OCI runtime exec failed: exec failed: %w", err))
}

// tooLong tells what Linux does not take: 128 KiB in one argument, and with 8 MiB
// of stack 2 MiB in all.
func tooLong(argv []string) bool {
	all := 0
	for _, argument := range argv {
		if len(argument) >= 128<<10 {
			return true
		}
		all += len(argument) + 1 + 8
	}
	return all > 2<<20
}

func limit(data []byte, most int) ([]byte, bool) {
	if len(data) > most {
		return data[:most], true
	}
	return data, false
}
