package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// identity tells a directory or file from all others of the host.
type identity struct {
	major, minor uint32
	inode        uint64
}

// identify tells what is at a path without asking a file server, which may not
// answer: a mount of a host directory may lead to one.
func identify(path string) (identity, error) {
	var stat unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_DONT_SYNC
	if err := unix.Statx(unix.AT_FDCWD, path, flags, unix.STATX_INO, &stat); err != nil {
		return identity{}, &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	return identity{stat.Dev_major, stat.Dev_minor, stat.Ino}, nil
}

// Bound tells which environments have which volume staged, by the volume's
// name: whatever a database says, their processes have its files. It goes by
// the directories themselves, not by their names: a volume that was made anew
// is another one.
func (m *Manager) Bound(ctx context.Context) (map[string][]string, error) {
	ids, err := m.Staged(ctx)
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	volumes, err := m.List(ctx)
	if err != nil {
		return nil, err
	}
	names := make(map[identity]string, len(volumes))
	for _, v := range volumes {
		id, err := identify(filepath.Join(m.volumesDir(), v.Name, "data"))
		if errors.Is(err, fs.ErrNotExist) { // deleted meanwhile
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("inspect volume %s: %w", v.Name, err)
		}
		names[id] = v.Name
	}
	bound := make(map[string][]string)
	for _, env := range ids {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		found, err := m.boundTo(env, names)
		if err != nil {
			return nil, fmt.Errorf("look for the volumes of %s: %w", env, err)
		}
		for name := range found {
			bound[name] = append(bound[name], env)
		}
	}
	return bound, nil
}

// boundTo is Bound of one environment. What is unstaged meanwhile is not bound.
func (m *Manager) boundTo(envID string, names map[identity]string) (map[string]bool, error) {
	dir := filepath.Join(m.config.StageDir, envID)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	found := make(map[string]bool)
	for _, entry := range entries {
		id, err := identify(filepath.Join(dir, entry.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if name, is := names[id]; is {
			found[name] = true
		}
	}
	return found, nil
}
