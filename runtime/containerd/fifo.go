package containerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// ownFIFODir holds this process's pipes, under its pid, so that the next one
// knows whose are dead.
func (e *Engine) ownFIFODir() string {
	return filepath.Join(e.cfg.FIFODir, strconv.Itoa(os.Getpid()))
}

func (e *Engine) makeFIFODir() error {
	if err := os.MkdirAll(e.ownFIFODir(), 0o700); err != nil {
		return fmt.Errorf("make directory for pipes: %w", err)
	}
	return nil
}

// removeOwnFIFODir removes it unless it has pipes: of commands that run yet, or
// of another engine of this process. The next daemon does so then.
func (e *Engine) removeOwnFIFODir() error {
	err := unix.Rmdir(e.ownFIFODir())
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("remove directory of pipes: %w", err)
	}
	return nil
}

// removeStaleFIFOs removes what a daemon that was killed has left.
func (e *Engine) removeStaleFIFOs() {
	entries, err := os.ReadDir(e.cfg.FIFODir)
	if err != nil {
		return // absent: nothing is stale
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || !died(pid) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(e.cfg.FIFODir, entry.Name())); err != nil {
			e.cfg.Log.Warn("stale pipes stay", "dir", entry.Name(), "error", err)
		}
	}
}
