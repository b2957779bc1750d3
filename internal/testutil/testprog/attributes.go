package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"unsafe"
)

// deniedIoctls prints the type and number of each ioctl that a filter denies,
// whatever direction, size and higher bits come along.
func deniedIoctls([]string) (int, error) {
	var denied []string
	for low := range uint64(1 << 16) {
		count := 0
		highs := []uint64{0, 0x40080000, 0xffffffff_c0040000, 0x1_401c0000}
		for _, high := range highs {
			// No filesystem sees it: there is no such file.
			if _, _, errno := syscall.RawSyscall(syscall.SYS_IOCTL, ^uintptr(0), uintptr(high|low), 0); errno != syscall.EBADF {
				count++
			}
		}
		if count > 0 {
			denied = append(denied, fmt.Sprintf("%#x:%d/%d", low, count, len(highs)))
		}
	}
	return out(strings.Join(denied, " "))
}

const (
	fileSetattr = 469    // the number of file_setattr(2), the same on all architectures
	atEmptyPath = 0x1000 // AT_EMPTY_PATH
)

// leaveProject gives a file to project 0 in each way that there is, has a
// directory pass on its project no more, and prints what came of it; 1 when
// none of it was done.
func leaveProject(args []string) (int, error) {
	file, err := os.Open(args[0])
	if err != nil {
		return 1, err
	}
	defer file.Close()
	var attributes [28]byte // struct fsxattr and struct file_attr: no flags, project 0
	var flags uint64
	attempt := func(call, a, b, c, d, e uintptr) error {
		if _, _, errno := syscall.Syscall6(call, a, b, c, d, e, 0); errno != 0 {
			return errno
		}
		return nil
	}
	var empty [1]byte // the path: the file itself, by AT_EMPTY_PATH
	code := 1
	for _, way := range []struct {
		name string
		err  error
	}{
		{"fssetxattr", attempt(syscall.SYS_IOCTL, file.Fd(), 0x401c5820, uintptr(unsafe.Pointer(&attributes)), 0, 0)},
		{"with-high-bits", attempt(syscall.SYS_IOCTL, file.Fd(), 0x1_401c5820, uintptr(unsafe.Pointer(&attributes)), 0, 0)},
		{"setflags", attempt(syscall.SYS_IOCTL, file.Fd(), 0x40086602, uintptr(unsafe.Pointer(&flags)), 0, 0)},
		{"file_setattr", attempt(fileSetattr, file.Fd(), uintptr(unsafe.Pointer(&empty)), uintptr(unsafe.Pointer(&attributes)), 24, atEmptyPath)},
	} {
		switch {
		case way.err == nil:
			fmt.Printf("%s done\n", way.name)
			code = 0
		case errors.Is(way.err, syscall.EPERM), errors.Is(way.err, syscall.ENOSYS):
			fmt.Printf("%s denied\n", way.name)
		default:
			fmt.Printf("%s %v\n", way.name, way.err)
			code = 0
		}
	}
	return code, nil
}
