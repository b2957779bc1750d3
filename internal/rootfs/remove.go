package rootfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// HasNames says whether a directory has an entry directly in it whose name
// matches. No link is followed on the way: a directory that is reached through
// one, or is none, has no entries.
func (r *Root) HasNames(dir string, match func(name string) bool) (bool, error) {
	file, err := r.plain(dir)
	if file == nil {
		return false, err
	}
	defer file.Close() //nolint:errcheck // nothing was written
	found := false
	err = eachName(file, func(name string) bool {
		found = found || match(name)
		return !found
	})
	return found, err
}

// RemoveNames removes the entries directly in a directory whose names match,
// but for directories. Links go themselves; none is followed, see HasNames.
func (r *Root) RemoveNames(dir string, match func(name string) bool) error {
	file, err := r.plain(dir)
	if file == nil {
		return err
	}
	defer file.Close() //nolint:errcheck // nothing is written to it
	var matching []string
	if err := eachName(file, func(name string) bool {
		if match(name) {
			matching = append(matching, name)
		}
		return true
	}); err != nil {
		return err
	}
	for _, name := range matching {
		err := unix.Unlinkat(int(file.Fd()), name, 0)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("remove %s in %s: %w", name, dir, err)
		}
	}
	return nil
}

// plain opens a directory for reading that no link leads to; nil when there is
// none.
func (r *Root) plain(dir string) (*os.File, error) {
	file, err := openAt(int(r.dir.Fd()), strings.TrimLeft(dir, "/"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, beneath)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	return file, nil
}

func eachName(dir *os.File, do func(name string) (more bool)) error {
	for {
		names, err := dir.Readdirnames(namesAtOnce)
		for _, name := range names {
			if !do(name) {
				return nil
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", dir.Name(), err)
		}
	}
}
