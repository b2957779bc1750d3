// Package atomicfile writes files that are either whole or not there.
package atomicfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Write puts data into a new file beside path, syncs it and renames it to
// path. On error path is as it was.
func Write(path string, data []byte, mode os.FileMode) error {
	return write(path, data, mode, (*os.File).Sync)
}

// WriteUnsynced is Write for a file that is looked at and made again when it is
// not what it should be: a process that dies leaves it whole or not there, a
// host that dies may leave it empty.
func WriteUnsynced(path string, data []byte, mode os.FileMode) error {
	return write(path, data, mode, func(*os.File) error { return nil })
}

func write(path string, data []byte, mode os.FileMode, sync func(*os.File) error) (err error) {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(file.Name()))
		}
	}()
	if _, err = file.Write(data); err != nil {
		return errors.Join(err, file.Close())
	}
	if err = file.Chmod(mode); err != nil {
		return errors.Join(err, file.Close())
	}
	if err = sync(file); err != nil {
		return errors.Join(err, file.Close())
	}
	if err = file.Close(); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}
