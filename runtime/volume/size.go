package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// sizeBounds bound what Size does for one volume, of which a tenant can make
// anything.
type sizeBounds struct {
	entries int // how many files it looks at
	pending int // how many bytes the paths of directories take that it has yet to read
	path    int // how long one of these may be, in bytes
}

// The kernel takes paths of PATH_MAX (4096) bytes with the zero at their end.
var defaultSizeBounds = sizeBounds{entries: 2_000_000, pending: 64 << 20, path: unix.PathMax - 1}

// errTooMany ends a walk that has seen enough.
var errTooMany = errors.New("too many files, or too deep")

// Size is how many bytes of disk a volume's files take, a file with several
// names counted once. measured is false when there are too many files, or
// too deep, or ctx ends before all were seen. Files that come and go meanwhile are no error.
// VOLUME_NOT_FOUND.
func (m *Manager) Size(ctx context.Context, name string) (size int64, measured bool, err error) {
	if _, err := m.Get(ctx, name); err != nil {
		return 0, false, err
	}
	root, err := openDirAt(unix.AT_FDCWD, filepath.Join(m.volumesDir(), name, "data"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, notFound(name)
	}
	if err != nil {
		return 0, false, fmt.Errorf("measure volume %s: %w", name, err)
	}
	defer root.Close() //nolint:errcheck // nothing was written
	walk := sizeWalk{root: root, bounds: m.sizes, seen: make(map[inode]struct{})}
	err = walk.run(ctx)
	switch {
	case err == nil:
		return walk.size, true, nil
	case errors.Is(err, errTooMany), ctx.Err() != nil:
		return 0, false, nil
	default:
		return 0, false, fmt.Errorf("measure volume %s: %w", name, err)
	}
}

type inode struct{ device, number uint64 }

// sizeWalk adds up what is below a directory that tenants change meanwhile. It
// holds two descriptors and reads a directory in portions, each with a look at
// its bounds.
type sizeWalk struct {
	root    *os.File
	bounds  sizeBounds
	seen    map[inode]struct{} // files with several names
	size    int64
	entries int
	todo    []string // directories that are to be read, as paths below root
	pending int      // their bytes
}

func (w *sizeWalk) run(ctx context.Context) error {
	if err := w.count(w.root, "", "."); err != nil {
		return err
	}
	for len(w.todo) > 0 {
		last := len(w.todo) - 1
		path := w.todo[last]
		w.todo, w.pending = w.todo[:last], w.pending-len(path)
		if err := w.read(ctx, path); err != nil {
			return err
		}
	}
	return nil
}

// read counts what is in a directory.
func (w *sizeWalk) read(ctx context.Context, path string) error {
	// No link leads out of the volume, and what became a pipe is not waited for.
	dir, err := openDirAt(int(w.root.Fd()), path, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return skipGone(err)
	}
	defer dir.Close() //nolint:errcheck // nothing was written
	for {
		names, err := dir.Readdirnames(namesAtOnce)
		for _, name := range names {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := w.count(dir, path, name); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return skipGone(err)
		}
	}
}

// count adds one file, and notes a directory to be read.
func (w *sizeWalk) count(dir *os.File, path, name string) error {
	if w.entries++; w.entries > w.bounds.entries {
		return errTooMany
	}
	var stat unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return skipGone(pathError("inspect", dir, name, err))
	}
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		below := filepath.Join(path, name)
		w.todo, w.pending = append(w.todo, below), w.pending+len(below)
		if len(below) > w.bounds.path || w.pending > w.bounds.pending {
			return errTooMany
		}
	} else if stat.Nlink > 1 {
		id := inode{stat.Dev, stat.Ino}
		if _, again := w.seen[id]; again {
			return nil
		}
		w.seen[id] = struct{}{}
	}
	w.size += stat.Blocks * 512 // the unit of st_blocks, whatever the file system's (stat(2))
	return nil
}

// skipGone goes on where something went, or became a link, meanwhile.
func skipGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EXDEV) {
		return nil
	}
	return err
}
