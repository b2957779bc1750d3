package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

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
