package logfile

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

const (
	readSize = 64 << 10
	pipeSize = 256 << 10   // what a container may write ahead of the writer, bytes
	idle     = time.Second // after which the beginning of a line is shown: a prompt has no newline
)

// Copy writes what comes from two pipes until both have ended. It reads both
// in one thread, so lines of the two streams are in the order they were seen
// in. It closes neither.
func (w *Writer) Copy(stdout, stderr int) error {
	buffer := make([]byte, readSize)
	fds := []unix.PollFd{{Fd: int32(stdout), Events: unix.POLLIN}, {Fd: int32(stderr), Events: unix.POLLIN}}
	for _, fd := range fds {
		_, _ = unix.FcntlInt(uintptr(fd.Fd), unix.F_SETPIPE_SZ, pipeSize) // a wish
	}
	for fds[0].Fd >= 0 || fds[1].Fd >= 0 {
		if w.lost > 0 {
			w.Flush() // tells of lost lines as soon as there is room again
		}
		timeout := -1
		if w.lost > 0 {
			timeout = int(retry.Milliseconds())
		}
		if len(w.parts[Stdout])+len(w.parts[Stderr]) > 0 {
			timeout = int(idle.Milliseconds())
		}
		if _, err := unix.Poll(fds, timeout); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		for i := range fds {
			if fds[i].Fd < 0 || fds[i].Revents == 0 {
				continue
			}
			n, err := unix.Read(int(fds[i].Fd), buffer)
			stream := Stream(i + 1)
			switch {
			case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			case err != nil || n == 0:
				w.End(stream)
				fds[i].Fd = -1 // poll skips it
			default:
				w.Write(stream, buffer[:n])
			}
			fds[i].Revents = 0
		}
		w.Pause(idle)
		w.Flush()
	}
	return nil
}
