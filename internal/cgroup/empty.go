package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// RemoveEmpty removes the group with the path from every hierarchy in which
// neither processes nor groups are in it. Where some are it stays, which is no
// error, as is a group that is not there.
func RemoveEmpty(path string) error {
	if !validPath(path) {
		return fmt.Errorf("cgroup path %q: %w", path, errdefs.ErrInvalidArgument)
	}
	roots, err := allHierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, root := range roots {
		// The kernel removes no group that has something in it.
		err := unix.Rmdir(filepath.Join(root, path))
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", filepath.Join(root, path), err))
		}
	}
	return errors.Join(errs...)
}

// allHierarchies are where groups have directories: the unified hierarchy, or all
// of v1, since what runs containers makes groups in each.
func allHierarchies() ([]string, error) {
	const root = "/sys/fs/cgroup"
	if Version() == "v2" {
		return []string{root}, nil
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("list hierarchies of cgroups: %w", err)
	}
	var found []string
	for _, entry := range entries {
		dir := filepath.Join(root, entry.Name())
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil {
			found = append(found, dir)
		}
	}
	return found, nil
}

// Inhabited returns the names of the groups directly below the one with the path
// that have processes, or below which there are some, in any hierarchy, sorted;
// none when there is no such group.
func Inhabited(path string) ([]string, error) {
	if !validPath(path) {
		return nil, fmt.Errorf("cgroup path %q: %w", path, errdefs.ErrInvalidArgument)
	}
	roots, err := allHierarchies()
	if err != nil {
		return nil, err
	}
	found := make(map[string]bool)
	for _, root := range roots {
		entries, err := os.ReadDir(filepath.Join(root, path))
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return nil, fmt.Errorf("list groups below %s: %w", path, err)
		}
		for _, entry := range entries {
			if entry.IsDir() && !found[entry.Name()] {
				if found[entry.Name()], err = inhabited(filepath.Join(root, path, entry.Name())); err != nil {
					return nil, err
				}
			}
		}
	}
	maps.DeleteFunc(found, func(_ string, is bool) bool { return !is })
	return slices.Sorted(maps.Keys(found)), nil
}

// inhabited says whether a process is in the group of a directory or below it.
func inhabited(dir string) (is bool, err error) {
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		gone := func(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }
		if err != nil && gone(err) || err == nil && !entry.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		procs, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if errors.Is(err, unix.EOPNOTSUPP) || len(procs) > 0 { // a threaded group tells of its threads alone
			is = true
			return fs.SkipAll
		}
		if err != nil && !gone(err) {
			return err
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("look for processes in cgroups: %w", err)
	}
	return is, nil
}
