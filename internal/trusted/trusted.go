// Package trusted looks for who could change a program before root runs it.
package trusted

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Program refuses a program that another user than root, or than who runs this
// process, could change or replace: the file, and each directory on the way,
// through links as well. One that is not there is fs.ErrNotExist.
func Program(name string) error { return check(name, true) }

// Library is Program for what is loaded and not run.
func Library(name string) error { return check(name, false) }

func check(name string, runs bool) error {
	if !filepath.IsAbs(name) {
		return fmt.Errorf("%q is not an absolute path", name)
	}
	resolved, err := filepath.EvalSymlinks(name)
	if err != nil {
		return err
	}
	for _, path := range []string{filepath.Dir(filepath.Clean(name)), resolved} {
		for ; ; path = filepath.Dir(path) {
			if err := checkOwner(path, path == resolved, runs); err != nil {
				return err
			}
			if path == "/" {
				break
			}
		}
	}
	return nil
}

func checkOwner(path string, file, runs bool) error {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	// In a sticky directory nobody replaces what is another's.
	shared := stat.Mode&0o022 != 0 && (file || stat.Mode&unix.S_ISVTX == 0)
	switch {
	case file && stat.Mode&unix.S_IFMT != unix.S_IFREG:
		return errors.New(path + " is not a file")
	case stat.Uid != 0 && int(stat.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d", path, stat.Uid)
	case shared:
		return fmt.Errorf("others than its owner may write to %s (mode %04o)", path, stat.Mode&0o7777)
	case file && runs && stat.Mode&0o111 == 0:
		return errors.New(path + " is not executable")
	}
	return nil
}
