// Package diskspace tells whether a file system has room for something. It
// leaves what to do about it to its callers.
package diskspace

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ample is how much more than what is asked for has to be free for the count
// of free blocks to be believed. ext4 counts blocks that it gives nobody,
// whence its own metadata grows: 4096 clusters, 16 MiB where a cluster is a
// block of 4 KiB and 256 MiB where it has 64.
const ample = 512 << 20

// Room is what a file system has.
type Room struct {
	// Size and Free are in bytes. Free counts what is for root alone, and may
	// count what nobody gets.
	Size, Free int64
	// Enough says whether what was asked for can be written by this process.
	Enough bool
}

// For asks whether bytes can be written below a directory. Where the count of
// free blocks leaves a doubt, they are taken for a moment by a file without a
// name: only that is right on every file system, and under a quota.
func For(dir string, bytes int64) (Room, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return Room{}, fmt.Errorf("ask for the space below %s: %w", dir, err)
	}
	room := Room{Size: int64(stat.Blocks) * stat.Bsize, Free: int64(stat.Bfree) * stat.Bsize}
	switch {
	case room.Size <= 0: // counts nothing, as some network file systems
		room.Enough = true
	case room.Free >= bytes:
		room.Enough = room.Free-bytes >= ample || gives(dir, bytes)
	}
	return room, nil
}

// gives takes bytes below a directory and gives them back. A file system that
// cannot do so is believed its count.
func gives(dir string, bytes int64) bool {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err == nil {
		file := os.NewFile(uintptr(fd), dir)
		defer file.Close() //nolint:errcheck // it has no name and nothing in it
		err = unix.EINTR
		for errors.Is(err, unix.EINTR) {
			err = unix.Fallocate(fd, 0, 0, max(bytes, 1))
		}
	}
	return !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT)
}
