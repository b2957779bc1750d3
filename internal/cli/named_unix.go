//go:build !windows

package cli

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
)

// descriptorDirs are where a program finds its descriptors: Linux's proc(5) and
// macOS's fd(4).
var descriptorDirs = regexp.MustCompile(`^(/dev/fd|/proc/(\d+)(/task/\d+)?/fd)$`)

// ownDescriptor is the number of a descriptor that a path such as
// /proc/self/fd/1 names; -1: it names something else.
func ownDescriptor(path string) int {
	dir, base := filepath.Split(path)
	number, err := strconv.Atoi(base)
	if err != nil || number < 0 || dir == "" {
		return -1
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return -1
	}
	match := descriptorDirs.FindStringSubmatch(dir)
	if match == nil || match[2] != "" && match[2] != strconv.Itoa(os.Getpid()) {
		return -1
	}
	return number
}

// duplicate opens a descriptor again. Unlike with an open of its path, a plain
// file goes on where it is, and a socket can be written to.
func duplicate(number int, path string) (*os.File, error) {
	// Exec of another program in between is none of this program's business: it
	// starts none.
	fd, err := syscall.Dup(number)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), path), nil
}

// ownerOf says whose a file is.
func ownerOf(info fs.FileInfo) (uid, gid int, known bool) {
	stat, known := info.Sys().(*syscall.Stat_t)
	if !known {
		return 0, 0, false
	}
	return int(stat.Uid), int(stat.Gid), true
}

// identityOf tells a file that has several names from others. known is false
// when it has one.
func identityOf(info fs.FileInfo) (id fileID, known bool) {
	stat, known := info.Sys().(*syscall.Stat_t)
	if !known || stat.Nlink < 2 {
		return fileID{}, false
	}
	return fileID{uint64(stat.Dev), stat.Ino}, true //nolint:unconvert // Dev has other types elsewhere
}

// umask is what new files are not allowed. To learn it it must be set: for that
// moment to the narrowest.
func umask() fs.FileMode {
	mask := syscall.Umask(0o077)
	syscall.Umask(mask)
	return fs.FileMode(mask) & fs.ModePerm
}
