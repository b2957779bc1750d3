package containerd

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

// A containerd that takes calls and does not answer is told from one that is not
// there. White-box: nobody wants to wait for as long as a call may take.
func TestContainerdThatDoesNotAnswer(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "c.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		<-stream.Context().Done()
		return stream.Context().Err()
	}))
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	e, err := New(Config{Address: socket, Namespace: "test", FIFODir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	e.patience = 300 * time.Millisecond
	c := runtime.Container{ID: "one", Image: "image:latest"}
	calls := map[string]func() error{
		"info":   func() error { _, err := e.Info(t.Context()); return err },
		"create": func() error { return e.Create(t.Context(), c) },
		"start":  func() error { _, err := e.Start(t.Context(), c); return err },
		"status": func() error { _, err := e.Status(t.Context(), c.ID); return err },
		"list":   func() error { _, err := e.List(t.Context()); return err },
	}
	for name, call := range calls {
		p := problem.Of(call())
		if p.Reason != problem.ContainerdTimeout || p.Hint == "" || !strings.Contains(p.Message, "did not answer within 300ms") {
			t.Errorf("%s: %s: %v, want %s", name, p.Reason, p, problem.ContainerdTimeout)
		}
	}
	server.Stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	for name, call := range calls {
		if p := problem.Of(call()); p.Reason != problem.ContainerdDown || p.Hint == "" {
			t.Errorf("%s once it is gone: %s: %v, want %s", name, p.Reason, p, problem.ContainerdDown)
		}
	}
}

// One that hangs takes connections all the same, and greets nobody.
func TestContainerdThatDoesNotGreet(t *testing.T) {
	t.Parallel() // it only waits
	socket := filepath.Join(t.TempDir(), "c.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	e, err := New(Config{Address: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := e.Info(t.Context()); problem.Of(err).Reason != problem.ContainerdTimeout || !strings.Contains(err.Error(), "within 5s") {
		t.Errorf("%v, want %s", err, problem.ContainerdTimeout)
	}
}
