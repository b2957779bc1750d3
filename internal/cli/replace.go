package cli

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// replaceIn makes something under a name of its own and renames it over what
// is there, which may be a plain file or a link, and nothing else: a device
// that became a plain file would break the machine. create gets the plain file
// that it replaces, or nil. What create has made is removed when it fails.
func replaceIn(root *os.Root, name string, noOverwrite bool, create func(at string, old fs.FileInfo) error) error {
	var old fs.FileInfo
	if info, err := root.Lstat(name); err == nil {
		switch {
		case info.IsDir():
			return &failure{Code: "failed_precondition", Message: name + " is a directory here, and none there", Hints: []string{"remove it first, or choose another place"}, exit: exitConflict}
		case noOverwrite:
			return existsHere(name)
		case special(info):
			return &failure{Code: "failed_precondition", Message: name + " is a device, FIFO or socket here, which is not replaced", Hints: []string{"remove it first, or choose another place"}, exit: exitConflict}
		case info.Mode().IsRegular():
			old = info
		}
	}
	beside := filepath.Join(filepath.Dir(name), ".remotegpu-copy-"+rand.Text())
	err := create(beside, old)
	if err == nil {
		err = root.Rename(beside, name)
	}
	// Two names of one file are left both by a rename.
	if left := root.Remove(beside); left != nil && !errors.Is(left, fs.ErrNotExist) {
		err = errors.Join(err, left)
	}
	return err
}

func existsHere(name string) error {
	return &failure{Code: "already_exists", Message: name + " exists here", Hints: []string{"leave --no-overwrite out, or choose another place"}, exit: exitConflict}
}

// keepAccess gives a new file the owner and permissions of the one that it
// replaces. Where the group cannot be kept, another one gets no rights: those
// were not meant for it. Setuid and setgid bits were for the old content.
func keepAccess(root *os.Root, name string, old fs.FileInfo) error {
	mode := old.Mode().Perm()
	if uid, gid, known := ownerOf(old); known && root.Lchown(name, uid, gid) != nil && root.Lchown(name, -1, gid) != nil {
		mode &^= 0o070
	}
	return root.Chmod(name, mode)
}
