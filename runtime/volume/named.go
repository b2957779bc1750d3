package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// openVolume opens the data directory of a volume and makes the volume when it
// is not there. The caller holds the volume's lock.
func (m *Manager) openVolume(name string) (fd int, created bool, err error) {
	if p := checkVolumeName(name); p != nil {
		return -1, false, p
	}
	if created, err = m.makeVolume(name); err != nil {
		return -1, false, fmt.Errorf("make volume %s: %w", name, err)
	}
	volumes := m.volumesDir()
	// Nothing up to the data directory is a tenant's; a link there is not ours.
	fd, err = openBeneath(volumes, filepath.Join(volumes, name, "data"), unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return -1, created, fmt.Errorf("open volume %s: %w", name, err)
	}
	return fd, created, nil
}

func (m *Manager) volumesDir() string { return filepath.Join(m.config.StateDir, "volumes") }

// makeVolume makes a volume under a name that no volume can have and renames
// it, so that a volume is whole or not there. Only root may walk the parents:
// a setuid program in a volume is out of reach for users of the host.
func (m *Manager) makeVolume(name string) (created bool, err error) {
	volumes := m.volumesDir()
	final, draft := filepath.Join(volumes, name), filepath.Join(volumes, "."+name)
	// An empty one is what a crash left of a volume that was being removed.
	switch err := unix.Rmdir(final); {
	case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
		return false, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	if err := os.MkdirAll(volumes, 0o700); err != nil {
		return false, err
	}
	if err := removeEmpty(draft); err != nil { // a crash left it
		return false, err
	}
	if err := os.MkdirAll(filepath.Join(draft, "data"), 0o700); err != nil {
		return false, errors.Join(err, removeEmpty(draft))
	}
	if err := os.Chmod(filepath.Join(draft, "data"), 0o755); err != nil {
		return false, errors.Join(err, removeEmpty(draft))
	}
	if err := os.Rename(draft, final); err != nil {
		return false, errors.Join(err, removeEmpty(draft))
	}
	return true, nil
}

// forgetVolume undoes makeVolume. A volume that has content, or is about to
// get some, is kept.
func (m *Manager) forgetVolume(name string) error {
	if m.copied.busy(name) {
		return nil
	}
	return removeEmpty(filepath.Join(m.volumesDir(), name))
}

func removeEmpty(volume string) error {
	for _, dir := range []string{filepath.Join(volume, "data"), volume} {
		err := unix.Rmdir(dir)
		if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
			return nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", dir, err)
		}
	}
	return nil
}
