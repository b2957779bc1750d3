package testutil

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// StartBuildKit starts a private buildkitd whose worker is the containerd at
// address (a path), in that containerd namespace, and returns what a client
// connects to. It is the daemon that "make up" starts. It ends with the test.
func StartBuildKit(tb testing.TB, containerd, namespace string) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "rgbk") //nolint:usetesting // short: the path of a socket has 107 bytes
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Errorf("remove buildkit's directory: %v", err)
		}
	})
	socket := filepath.Join(dir, "buildkitd.sock")
	startDaemon(tb, socket, Tool("buildkitd"),
		"--addr=unix://"+socket,
		"--root="+filepath.Join(dir, "root"),
		"--config="+filepath.Join(dir, "none.toml"), // not the host's
		"--oci-worker=false",
		"--containerd-worker=true",
		"--containerd-worker-addr="+containerd,
		"--containerd-worker-namespace="+namespace,
		"--containerd-worker-snapshotter=overlayfs",
		"--containerd-worker-net=host",
		"--allow-insecure-entitlement=network.host",
		"--cdi-disabled",
		"--otel-socket-path="+filepath.Join(dir, "otel.sock"),
	)
	return "unix://" + socket
}

// startDaemon starts a program that listens on a unix socket and waits until it
// does. It gets SIGTERM at the test's end, and SIGKILL when that does not end
// it. What it said is logged when the test failed.
func startDaemon(tb testing.TB, socket, program string, args ...string) {
	tb.Helper()
	var output bytes.Buffer
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context())) // ends at Cleanup, in its turn
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	if err := cmd.Start(); err != nil {
		cancel()
		tb.Fatalf("start %s: %v", program, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait(); close(ended) }()
	tb.Cleanup(func() {
		cancel()
		<-ended
		if tb.Failed() {
			tb.Logf("%s said:\n%s", filepath.Base(program), tail(output.Bytes(), 8192))
		}
	})
	for deadline := time.Now().Add(time.Minute); ; {
		conn, err := (&net.Dialer{}).DialContext(tb.Context(), "unix", socket)
		if err == nil {
			_ = conn.Close()
			return
		}
		select {
		case err := <-ended:
			tb.Fatalf("%s ended: %v\n%s", program, err, tail(output.Bytes(), 8192))
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			tb.Fatalf("%s does not listen on %s", program, socket)
		}
	}
}

func tail(data []byte, n int) []byte {
	if len(data) > n {
		return data[len(data)-n:]
	}
	return data
}
