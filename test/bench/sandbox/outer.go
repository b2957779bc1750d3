// Package sandbox gives the benchmark a machine of its own inside the machine:
// PID, mount, network, IPC and UTS namespaces whose end, however it comes,
// takes every process, mount, interface and firewall rule of a run with it.
package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"sort"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The first arguments with which this program calls itself.
const (
	InitArg = "sandbox-init"
	BodyArg = "sandbox-body"
)

// Run calls this program again inside a sandbox with request as JSON on its
// standard input, and decodes the JSON that it answers with into reply. dir is
// a directory on a disk for what the run keeps in files; name is the cgroup
// (in every hierarchy) under which it makes others. Both are gone when Run
// returns. The end of ctx, or of this process, ends everything in the sandbox.
func Run(ctx context.Context, dir, name string, request, reply any, progress io.Writer) (err error) {
	input, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory of the run: %w", err)
	}
	defer func() {
		err = errors.Join(err, removeAll(dir), eventually(func() error { return removeCgroups(name) }))
	}()

	// The child dies with the thread that started it, so this goroutine keeps
	// its thread for as long as the child lives.
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	var output bytes.Buffer
	cmd := exec.CommandContext(ctx, "/proc/self/exe", InitArg, dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &output, progress
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true, // a ctrl-C reaches us, and we end the sandbox
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run in sandbox: %w", errors.Join(ctx.Err(), err))
	}
	if err := json.Unmarshal(output.Bytes(), reply); err != nil {
		return fmt.Errorf("decode what the sandbox answered: %w", err)
	}
	return nil
}

// removeAll removes the directory of a run. The kernel gives up the sandbox's
// mounts a moment after its last process, so it tries for a while.
func removeAll(dir string) error {
	return eventually(func() error {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove directory of the run: %w", err)
		}
		return nil
	})
}

// removeCgroups removes the cgroup of a name with all below it, in every
// hierarchy. The kernel refuses to remove one that has processes.
func removeCgroups(name string) error {
	var failures []error
	for _, root := range cgroups(name) {
		var dirs []string
		filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		sort.Sort(sort.Reverse(sort.StringSlice(dirs))) // children first
		for _, dir := range dirs {
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
				failures = append(failures, fmt.Errorf("remove cgroup %s: %w", dir, err))
			}
		}
	}
	return errors.Join(failures...)
}

// cgroups lists where the cgroup of that name is. A container runtime puts it
// below the root of a hierarchy, or below the cgroup that the caller is in.
func cgroups(name string) []string {
	own := map[string]bool{"/": true}
	lines, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(lines)) {
		if fields := strings.SplitN(strings.TrimSpace(line), ":", 3); len(fields) == 3 {
			own[fields[2]] = true
		}
	}
	var found []string
	for path := range own {
		for _, hierarchy := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			matches, _ := filepath.Glob(filepath.Join(hierarchy, path, name))
			found = append(found, matches...)
		}
	}
	return found
}

func eventually(try func() error) error {
	var err error
	for range 50 {
		if err = try(); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}
