// Package claim keeps the nodes of one host apart. What only one of them can have
// (a cgroup above those of environments, a namespace of containerd, a network, a
// run directory) a node claims by a file that all of the host know: it is locked
// while the node's daemon runs, and goes on saying whose it is while that is down,
// since environments run on.
package claim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// Dir is where the claims of a host's nodes are. It goes with a reboot, as do the
// processes that they are about.
const Dir = "/run/remotegpud"

// patience is how long a daemon that was killed may keep its claims: a program that
// it was just starting has them, too, until that is executed.
const patience = 5 * time.Second

// Node is who claims. Two are the same when either field is: a state directory may
// be moved, and may be made anew.
type Node struct {
	ID       string // goes with the state directory; "" when there is none
	StateDir string // absolute, without symbolic links
}

func (n Node) is(other Node) bool {
	return n.ID != "" && n.ID == other.ID || n.StateDir == other.StateDir
}

// Thing is what only one node of a host can have.
type Thing struct {
	Kind  string // what it is, for people: "cgroup"
	Name  string // which one: "/remotegpu"
	Field string // the setting that says so, "" without one
	// InUse tells what a node that does not run has left there that still is of
	// use, for people; "" when there is nothing.
	InUse func() (string, error)
}

func (t *Thing) String() string { return t.Kind + " " + t.Name }

// Held are the claims of a node whose daemon runs.
type Held struct {
	dir   string
	files []*os.File
}

// Take claims things for a node, all or none. It waits a moment for a daemon that
// has just ended. CONFIG_INVALID when another node that runs has one of them, or one
// that does not run and still uses it.
func Take(ctx context.Context, dir string, node Node, things ...Thing) (_ *Held, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, problem.New(problem.ConfigInvalid, "the directory of what nodes of this host claim cannot be made").WithCause(err).WithHint("run as root")
	}
	held := &Held{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, held.Close())
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for i := range things {
		if err := held.take(ctx, node, &things[i]); err != nil {
			return nil, err
		}
	}
	held.forgetGone()
	return held, nil
}

// take claims one thing.
func (h *Held) take(ctx context.Context, node Node, thing *Thing) error {
	path := filepath.Join(h.dir, fileName(thing))
	file, locked, err := lock(ctx, path)
	if err != nil {
		return fmt.Errorf("claim %s: %w", thing, err)
	}
	owner := read(file)
	if !locked {
		return errors.Join(conflict(thing, "the node of %s runs and has %s", owner.StateDir, thing).
			WithHint("stop that node, or give this one its own"), file.Close())
	}
	h.files = append(h.files, file)
	if owner.StateDir != "" && !node.is(owner) && thing.InUse != nil {
		use, err := thing.InUse()
		if err != nil {
			return fmt.Errorf("look whether %s is in use: %w", thing, err)
		}
		if use != "" {
			return conflict(thing, "%s is of the node of %s, which does not run and still has there: %s", thing, owner.StateDir, use).
				WithHint("start that node, or give this one its own; should that node be gone for good, end what it left and remove %s", path)
		}
	}
	return write(file, node, thing)
}

func conflict(thing *Thing, format string, args ...any) *problem.Problem {
	p := problem.New(problem.ConfigInvalid, format, args...)
	if thing.Field != "" {
		p = p.WithField(thing.Field)
	}
	return p
}

// Close ends the claims' locks. The files go on saying whose the things are.
func (h *Held) Close() error {
	var errs []error
	for _, file := range h.files {
		errs = append(errs, file.Close())
	}
	h.files = nil
	return errors.Join(errs...)
}

// Remove gives up the claims.
func (h *Held) Remove() error {
	var errs []error
	for _, file := range h.files {
		if err := os.Remove(file.Name()); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("give up a claim: %w", err))
		}
	}
	_ = os.Remove(h.dir) // there may be others in it
	return errors.Join(append(errs, h.Close())...)
}

// forgetGone removes claims of nodes that are gone with their state directories,
// whose network namespaces and directories have names that nobody has again. What
// they may have left in a thing is looked for by who claims that.
func (h *Held) forgetGone() {
	entries, err := os.ReadDir(h.dir)
	if err != nil {
		return // it is a matter of tidiness alone
	}
	for _, entry := range entries {
		file, err := os.OpenFile(filepath.Join(h.dir, entry.Name()), os.O_RDWR|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && isGone(read(file)) {
			_ = os.Remove(file.Name())
		}
		_ = file.Close()
	}
}

func isGone(owner Node) bool {
	if owner.StateDir == "" {
		return false // somebody is about to write it
	}
	_, err := os.Stat(owner.StateDir)
	return errors.Is(err, os.ErrNotExist)
}

// fileName is a thing's file: what people read first, and what no two share.
func fileName(thing *Thing) string {
	sum := sha256.Sum256([]byte(thing.String()))
	return strings.ReplaceAll(thing.Kind, " ", "-") + "-" + hex.EncodeToString(sum[:8])
}

// lock opens a file, which is made when it is absent, and locks it. Not locked when
// somebody else has it until ctx ends.
func lock(ctx context.Context, path string) (file *os.File, locked bool, err error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, false, err
		}
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && isAt(file, path) {
			return file, true, nil
		}
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, false, errors.Join(os.NewSyscallError("flock", err), file.Close())
		}
		select {
		case <-tick.C:
			_ = file.Close() // another one may be there by now
		case <-ctx.Done():
			if err == nil {
				return nil, false, errors.Join(context.Cause(ctx), file.Close())
			}
			return file, false, nil
		}
	}
}

// isAt says whether a file still is the one at path: who had it may have removed it.
func isAt(file *os.File, path string) bool {
	ours, err := file.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(ours, there)
}

// read is whose a claim is. The zero Node when it is nobody's, as of one that a
// crash has left half written.
func read(file *os.File) Node {
	text := make([]byte, 8<<10)
	n, _ := file.ReadAt(text, 0)
	lines := strings.Split(string(text[:n]), "\n")
	if len(lines) != 4 || lines[3] != "" {
		return Node{}
	}
	return Node{ID: lines[0], StateDir: lines[1]}
}

// write makes a claim a node's.
func write(file *os.File, node Node, thing *Thing) error {
	if err := file.Truncate(0); err != nil {
		return fmt.Errorf("claim %s: %w", thing, err)
	}
	if _, err := file.WriteAt([]byte(node.ID+"\n"+node.StateDir+"\n"+thing.String()+"\n"), 0); err != nil {
		return fmt.Errorf("claim %s: %w", thing, err)
	}
	return nil
}
