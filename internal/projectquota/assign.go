package projectquota

import (
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
func assign(dir string, id uint32) error {
	file, err := open(dir)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // nothing was written
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	return assignBelow(file, id, stat.Dev)
}

func assignBelow(dir *os.File, id uint32, device uint64) error {
	for {
		entries, err := dir.ReadDir(256)
		for _, entry := range entries {
			if err := assignEntry(dir, entry, id, device); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return give(dir, id, true)
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", dir.Name(), err)
		}
	}
}

func assignEntry(dir *os.File, entry os.DirEntry, id uint32, device uint64) error {
	if !entry.IsDir() && !entry.Type().IsRegular() {
		return nil
	}
	fd, err := unix.Openat(int(dir.Fd()), entry.Name(), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return nil // it has gone, or become something else
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: dir.Name() + "/" + entry.Name(), Err: err}
	}
	file := os.NewFile(uintptr(fd), dir.Name()+"/"+entry.Name())
	defer file.Close() //nolint:errcheck // nothing was written
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return fmt.Errorf("look at %s: %w", file.Name(), err)
	}
	switch {
	case stat.Dev != device:
		return nil
	case stat.Mode&unix.S_IFMT == unix.S_IFDIR:
		return assignBelow(file, id, device)
	case stat.Mode&unix.S_IFMT == unix.S_IFREG:
		return give(file, id, false)
	}
	return nil
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
