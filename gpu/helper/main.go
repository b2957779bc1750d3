package helper

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/gpu"
)

// Main is the program of the helper process: Serve on the standard input and
// output. Signals do not end it, since one that the daemon gets may be sent to
// all of its processes; it is needed until the daemon ends.
func Main(ctx context.Context, open func(settings json.RawMessage) (gpu.Driver, error)) error {
	out, err := answers()
	if err != nil {
		return err
	}
	return Serve(context.WithoutCancel(ctx), os.Stdin, out, open)
}

// answers is the standard output, kept from whatever writes to file descriptor
// 1 in this process: libraries of drivers do.
func answers() (io.Writer, error) {
	fd, err := unix.FcntlInt(1, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("keep the standard output: %w", err)
	}
	if err := unix.Dup3(2, 1, 0); err != nil {
		return nil, fmt.Errorf("turn the standard output away: %w", err)
	}
	return os.NewFile(uintptr(fd), "answers"), nil
}
