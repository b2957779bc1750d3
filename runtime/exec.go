package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// ExecLimit is how many commands of callers may run in one environment at a
// time, with streams or without: each holds buffers and goroutines of the node.
const ExecLimit = 64

// Executor runs commands with streams; runtime/containerd implements it.
type Executor interface {
	// Exec runs p until it has ended and all of its output was written. When
	// ctx ends first it hangs up: SIGHUP to the process, its session and what
	// they have started, SIGKILL to what is left after 5 s; then it returns
	// ctx's cause. The same happens when an output cannot be written any more,
	// or a control is not valid. No stream is used once it has returned, but
	// for one Read of Stdin that may still wait.
	//
	// NotFound when the container does not run, ErrPaused when it is paused: no
	// stream was used then; *problem.Problem COMMAND_NOT_FOUND,
	// COMMAND_NOT_EXECUTABLE, USER_NOT_FOUND, FIELD_INVALID (signal). A container
	// that ends takes the process with it: SIGKILL.
	Exec(ctx context.Context, id string, p Process, streams Streams) (Exit, error)
	// RemoveStale kills and removes the processes that engines before this one
	// have left, as a daemon that was killed does, and those that this one
	// could not remove when it should have. Call it when no other engine works
	// on the same containers.
	RemoveStale(ctx context.Context) error
}

// Process is a command to run with streams.
type Process struct {
	Argv     []string
	Env      []string // on top of the container's
	Workdir  string   // "": the container's
	User     string   // "": the container's
	Terminal *TerminalSize
}

// TerminalSize is the size of a terminal in characters.
type TerminalSize struct{ Columns, Rows int }

// Streams connects a process with its caller. The process is held up by a
// caller that is slow to read: nothing but a pipe lies between.
type Streams struct {
	// Stdin is read until io.EOF, which is passed on: with a terminal as the
	// key that ends input (^D), without one by closing the pipe. nil: none.
	Stdin io.Reader
	// Stdout gets standard output, with a terminal all output.
	Stdout io.Writer
	// Stderr gets standard error where there is no terminal.
	Stderr io.Writer
	// Control gets new sizes and signals. nil: none.
	Control <-chan Control
	// Started is called once, when the process runs and before the first
	// output. nil: nobody wants to know.
	Started func() error
}

// Control is one thing to do to a process that runs.
type Control struct {
	Resize *TerminalSize // of no effect without a terminal
	Signal string        // name or number, as kill(1) takes it
}

// ExecRequest is a command to run in an environment with streams.
type ExecRequest struct {
	Project     string
	Environment string // id or name
	Argv        []string
	Env         map[string]string
	Workdir     string
	User        string
	Terminal    *TerminalSize
}

// Exec runs one command with streams in a running environment until it has
// ended or ctx ends. While a snapshot makes the environment stand still it waits.
// ENV_NOT_FOUND, ENV_NOT_RUNNING, ENV_BUSY, EXEC_LIMIT_REACHED, FIELD_INVALID,
// and the errors of Executor.Exec.
func (m *Manager) Exec(ctx context.Context, req ExecRequest, streams Streams) (Exit, error) {
	env, err := m.Get(ctx, req.Project, req.Environment)
	if err != nil {
		return Exit{}, err
	}
	if env.State != Running {
		return Exit{}, NotRunning(env)
	}
	variables, err := commandVariables(req.Argv, req.Env, req.Workdir)
	if err != nil {
		return Exit{}, err
	}
	leave, err := m.enterCommand(env)
	if err != nil {
		return Exit{}, err
	}
	defer leave()
	var exit Exit
	err = m.moving(ctx, env, standstillWait, func(env *Environment) (err error) {
		exit, err = m.cfg.Executor.Exec(ctx, env.ID, Process{
			Argv: req.Argv, Env: variables, Workdir: req.Workdir, User: req.User, Terminal: req.Terminal,
		}, streams)
		return commandRefused(env, err)
	})
	if err != nil {
		return Exit{}, fmt.Errorf("run command in environment %s: %w", env.ID, err)
	}
	return exit, nil
}

// commandRefused tells why a command was not started: the environment does
// not run any more, or is paused by now, or the request's user is unknown.
func commandRefused(env *Environment, err error) error {
	switch {
	case errdefs.IsNotFound(err):
		if env.State == Running { // as it was when it was read
			return problem.New(problem.EnvNotRunning, "the process of environment %q has ended", env.Name).WithField("environment").
				WithHint("see how: remotegpu env get %s; unless it restarts by itself, start it: remotegpu env start %s", env.Name, env.Name).WithCause(err)
		}
		return NotRunning(env).WithCause(err)
	case errors.Is(err, ErrPaused) && env.State != Running:
		return NotRunning(env) // it does not go on by itself
	}
	if p := problem.Of(err); p != nil && p.Reason == problem.UserNotFound {
		atFault := *p
		atFault.Field = "user" // of this request, not of a spec
		return &atFault
	}
	return err
}

// enterCommand counts a command of a caller until leave is called;
// EXEC_LIMIT_REACHED when too many run.
func (m *Manager) enterCommand(env *Environment) (leave func(), err error) {
	if !m.execs.enter(env.ID, ExecLimit) {
		return nil, problem.New(problem.ExecLimit, "%d commands run in environment %q already", ExecLimit, env.Name).
			WithField("environment").WithHint("let one of them end first, or start several from one shell")
	}
	return func() { m.execs.leave(env.ID) }, nil
}

// commandVariables are the variables of a command as "NAME=value". FIELD_INVALID
// for one that cannot be, and for arguments and a working directory that cannot:
// the kernel takes them to end at the first NUL byte.
func commandVariables(argv []string, env map[string]string, workdir string) ([]string, error) {
	var errs []error
	for i, argument := range argv {
		if strings.ContainsRune(argument, 0) {
			errs = append(errs, invalid("argv["+strconv.Itoa(i)+"]", "arguments cannot carry binary data; use standard input", "an argument contains a NUL byte"))
		}
	}
	switch {
	case strings.ContainsRune(workdir, 0):
		errs = append(errs, invalid("workdir", "name a directory of the environment", "the working directory contains a NUL byte"))
	case workdir != "" && !path.IsAbs(workdir):
		errs = append(errs, invalid("workdir", "begin it with /", "the working directory %q is no absolute path", workdir))
	}
	variables := make([]string, 0, len(env))
	for _, key := range slices.Sorted(maps.Keys(env)) {
		switch {
		case !variableName.MatchString(key):
			errs = append(errs, invalid("env["+strconv.Quote(key)+"]", "use letters, digits and _, not beginning with a digit", "%q is not a variable name", key))
		case strings.ContainsRune(env[key], 0):
			errs = append(errs, invalid("env["+strconv.Quote(key)+"]", "variables cannot carry binary data; use standard input", "the value of %s contains a NUL byte", key))
		}
		variables = append(variables, key+"="+env[key])
	}
	return variables, errors.Join(errs...)
}

// removeStaleExecs ends what the daemon before this one ran for its callers, and
// what this one could not end.
func (m *Manager) removeStaleExecs(ctx context.Context) {
	if err := m.cfg.Executor.RemoveStale(ctx); err != nil && ctx.Err() == nil {
		m.leave(ctx, slog.LevelWarn, "commands without a caller are left", "error", err)
	}
}

// useCount counts what goes on in each environment or volume.
type useCount struct {
	mu    sync.Mutex
	count map[string]int
}

func (c *useCount) enter(id string, limit int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count[id] >= limit {
		return false
	}
	if c.count == nil {
		c.count = make(map[string]int)
	}
	c.count[id]++
	return true
}

// ids are those in which something goes on.
func (c *useCount) ids() map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := make(map[string]bool, len(c.count))
	for id := range c.count {
		ids[id] = true
	}
	return ids
}

func (c *useCount) leave(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count[id]--; c.count[id] <= 0 {
		delete(c.count, id)
	}
}
