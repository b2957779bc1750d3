package containerd

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const statusCreated = task.Status_CREATED

// parseSignal reads "SIGTERM", "term", "15" and "RTMIN+3" (systemd's).
func parseSignal(text string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(text); err == nil && n > 0 && n <= 64 {
		return syscall.Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(text), "SIG")
	if offset, found := strings.CutPrefix(name, "RTMIN"); found {
		// The C library keeps two real-time signals for itself.
		n, err := strconv.Atoi("0" + strings.TrimPrefix(offset, "+"))
		if err == nil && n <= 30 {
			return syscall.Signal(34 + n), nil
		}
	}
	if signal := unix.SignalNum("SIG" + name); signal != 0 {
		return signal, nil
	}
	return 0, fmt.Errorf("no signal %q: %w", text, errdefs.ErrInvalidArgument)
}
