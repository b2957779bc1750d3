package volume

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// namesAtOnce is how many names are read of a directory at a time.
const namesAtOnce = 1024

// removeTree removes a directory of ours with all that a tenant put below it.
// What is absent is removed. It is os.RemoveAll for directories of any depth:
// that one keeps a descriptor and a stack frame per level, of which a tenant
// can make a million. Here directories that are not empty are moved up next to
// each other, so two descriptors do, and a crash leaves something of the same
// kind. No link is followed and nothing mounted below is entered. It ends with
// ctx, between two names.
func removeTree(ctx context.Context, path string) error {
	top, err := openDirAt(unix.AT_FDCWD, path, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer top.Close() //nolint:errcheck // nothing was written to it
	if err := emptyDir(ctx, top, func(name string) (bool, error) { return dissolve(ctx, top, name) }); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// dissolve removes a directory in top, after moving the directories in it to
// top. It tells whether anything changed.
func dissolve(ctx context.Context, top *os.File, name string) (changed bool, err error) {
	dir, err := openDirAt(int(top.Fd()), name, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
	if errors.Is(err, fs.ErrNotExist) { // somebody else removes it as well
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer dir.Close() //nolint:errcheck // nothing was written to it
	err = emptyDir(ctx, dir, func(inner string) (bool, error) {
		err := unix.Renameat(int(dir.Fd()), inner, int(top.Fd()), rand.Text())
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, pathError("move up", dir, inner, err)
		}
		changed = true
		return true, nil
	})
	if err != nil {
		return changed, err
	}
	if err := unix.Unlinkat(int(top.Fd()), name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return changed, pathError("remove", top, name, err)
	}
	return true, nil
}

// emptyDir removes what is in a directory; for directories that are not empty
// it calls full. It goes on after an error, and looks again as long as
// something changes: reading a directory while it changes may skip names.
func emptyDir(ctx context.Context, dir *os.File, full func(name string) (changed bool, err error)) error {
	for {
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
		var first error
		seen, progress := false, false
		for {
			names, err := dir.Readdirnames(namesAtOnce)
			for _, name := range names {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				changed, err := removeEntry(dir, name, full)
				seen, progress = true, progress || changed
				if first == nil {
					first = err
				}
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
		}
		if !seen || !progress {
			return first
		}
	}
}

func removeEntry(dir *os.File, name string, full func(name string) (bool, error)) (changed bool, err error) {
	at := int(dir.Fd())
	err = unix.Unlinkat(at, name, 0)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		switch dirErr := unix.Unlinkat(at, name, unix.AT_REMOVEDIR); {
		case errors.Is(dirErr, unix.ENOTEMPTY), errors.Is(dirErr, unix.EEXIST):
			return full(name)
		case !errors.Is(dirErr, unix.ENOTDIR): // else the first error says more
			err = dirErr
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, pathError("remove", dir, name, err)
	}
	return true, nil
}

func openDirAt(at int, name string, resolve uint64) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: resolve,
	}
	for {
		fd, err := unix.Openat2(at, name, &how)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("open directory %s: %w", name, err)
		}
	}
}

func pathError(op string, dir *os.File, name string, err error) error {
	return &fs.PathError{Op: op, Path: filepath.Join(dir.Name(), name), Err: err}
}
