package testutil

import (
	"os/exec"
	goruntime "runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// NetNS moves the test's goroutine into a network namespace of its own, with
// loopback up. The thread is never unlocked, so the namespace dies with the
// goroutine; child processes inherit it. Code that starts goroutines which do
// network work must be told the namespace by path: see NetNSPath.
func NetNS(tb testing.TB) {
	tb.Helper()
	goruntime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		tb.Fatalf("make network namespace: %v", err)
	}
	Sh(tb, "ip link set lo up")
}

// Sh runs a shell command in the test's namespace and returns its trimmed
// output. It fails the test when the command fails.
func Sh(tb testing.TB, command string) string {
	tb.Helper()
	out, err := exec.CommandContext(tb.Context(), "sh", "-ec", command).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s: %v\n%s", command, err, out)
	}
	return strings.TrimSpace(string(out))
}
