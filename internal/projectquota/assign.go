package projectquota

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// assign gives a directory and all below it to a project, and has what is made
// there later inherit it. A link or a device has the project of where it was
// made; they take no blocks to speak of. It follows no link, whoever makes some
// meanwhile, and crosses into no other filesystem.
func assign(ctx context.Context, dir string, id uint32) error {
	return walk(ctx, dir, func(file *os.File, directory bool) error { return give(file, id, directory) })
}

// level is a directory that a walk is in: which it is, and how far it was read.
type level struct {
	device, inode uint64
	offset        int64 // where to go on reading, as the filesystem counts
}

// walk calls visit with every file and directory below dir that has blocks of
// its own, a directory after what is below it, and with dir last. A tenant may
// nest a million directories: it holds two descriptors at a time and 24 bytes
// per level, and comes back up by "..", which must be where it came from. It
// ends with ctx, between two files.
func walk(ctx context.Context, dir string, visit func(file *os.File, directory bool) error) error {
	going := func(file *os.File, directory bool) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return visit(file, directory)
	}
	at, err := open(dir)
	if err != nil {
		return err
	}
	defer func() { at.Close() }() //nolint:errcheck // nothing was written
	var stat unix.Stat_t
	if err := unix.Fstat(int(at.Fd()), &stat); err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	levels := []level{{device: stat.Dev, inode: stat.Ino}}
	buffer := make([]byte, 8<<10)
	for {
		below, err := visitEntries(at, &levels[len(levels)-1], buffer, going)
		if err != nil {
			return fmt.Errorf("below %s: %w", dir, err)
		}
		if below != nil {
			if err := unix.Fstat(int(below.Fd()), &stat); err != nil {
				return errors.Join(fmt.Errorf("look below %s: %w", dir, err), below.Close())
			}
			at.Close() //nolint:errcheck // nothing was written
			at = below
			levels = append(levels, level{device: stat.Dev, inode: stat.Ino})
			continue
		}
		if err := going(at, true); err != nil {
			return fmt.Errorf("below %s: %w", dir, err)
		}
		levels = levels[:len(levels)-1]
		if len(levels) == 0 {
			return nil
		}
		up, err := unix.Openat(int(at.Fd()), "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("go back up below %s: %w", dir, err)
		}
		at.Close() //nolint:errcheck // nothing was written
		at = os.NewFile(uintptr(up), "..")
		if err := unix.Fstat(up, &stat); err != nil {
			return fmt.Errorf("look below %s: %w", dir, err)
		}
		if here := levels[len(levels)-1]; stat.Dev != here.device || stat.Ino != here.inode {
			return fmt.Errorf("a directory below %s was moved meanwhile: %w", dir, unix.EBUSY)
		}
	}
}

// visitEntries visits the files of a directory from where it was read to, until
// a directory comes, which it returns; nil at the end.
func visitEntries(dir *os.File, at *level, buffer []byte, visit func(*os.File, bool) error) (*os.File, error) {
	if _, err := unix.Seek(int(dir.Fd()), at.offset, io.SeekStart); err != nil {
		return nil, fmt.Errorf("list directory: %w", err)
	}
	for {
		n, err := unix.Getdents(int(dir.Fd()), buffer)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list directory: %w", err)
		}
		if n == 0 {
			return nil, nil //nolint:nilnil // the end
		}
		for rest := buffer[:n]; len(rest) > 0; {
			entry := rest[:binary.NativeEndian.Uint16(rest[16:])]
			rest = rest[len(entry):]
			at.offset = int64(binary.NativeEndian.Uint64(entry[8:]))
			below, err := visitEntry(dir, entry, at.device, visit)
			if below != nil || err != nil {
				return below, err
			}
		}
	}
}

// visitEntry visits what a struct linux_dirent64 names (getdents64(2)), or
// returns it when it is a directory.
func visitEntry(dir *os.File, entry []byte, device uint64, visit func(*os.File, bool) error) (*os.File, error) {
	name := unix.ByteSliceToString(entry[19:])
	kind := entry[18]
	if name == "." || name == ".." || kind != unix.DT_DIR && kind != unix.DT_REG && kind != unix.DT_UNKNOWN {
		return nil, nil //nolint:nilnil // nothing to do
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return nil, nil //nolint:nilnil // it has gone, or become something else
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	file := os.NewFile(uintptr(fd), name)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return nil, errors.Join(fmt.Errorf("look at %s: %w", name, err), file.Close())
	}
	if stat.Dev == device && stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		return file, nil
	}
	defer file.Close() //nolint:errcheck // nothing was written
	if stat.Dev == device && stat.Mode&unix.S_IFMT == unix.S_IFREG {
		return nil, visit(file, false)
	}
	return nil, nil //nolint:nilnil // nothing to do
}

// give gives one file to a project.
func give(file *os.File, id uint32, directory bool) error {
	attributes, err := getAttributes(file)
	if err != nil {
		return fmt.Errorf("read project of %s: %w", file.Name(), err)
	}
	wanted := attributes
	wanted.project = id
	if directory {
		wanted.flags |= inherit
	}
	if wanted == attributes {
		return nil
	}
	if err := setAttributes(file, wanted); err != nil {
		return fmt.Errorf("set project of %s: %w", file.Name(), err)
	}
	return nil
}
