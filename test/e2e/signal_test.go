package e2e_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/gen/remotegpu/v1/remotegpuv1connect"
)

// environments is a generated client of the node, over its unix socket.
func (n *Node) environments(tb testing.TB) remotegpuv1connect.EnvironmentServiceClient {
	tb.Helper()
	transport := &http.Transport{
		Protocols: new(http.Protocols),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", n.Socket())
		},
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	tb.Cleanup(transport.CloseIdleConnections)
	return remotegpuv1connect.NewEnvironmentServiceClient(
		connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: transport}, "http://node")))
}

// testExecSignals sends signals as a client of the API does: by name, by
// number, and what is none.
func testExecSignals(t *testing.T, n *Node) {
	t.Helper()
	client := n.environments(t)
	for signal, want := range map[string]int32{"HUP": 128 + 1, "SIGKILL": 128 + 9, "9": 128 + 9, "NOTHING": 0} {
		exit, err := signalled(t, client, "TERM", signal) // the command ignores the first one
		switch {
		case want != 0 && (exit.GetCode() != want || exit.GetSignal() != want-128 || !errors.Is(err, io.EOF)):
			t.Errorf("signal %s: exit %v, error %v, want exit code %d", signal, exit, err, want)
		case want == 0 && connect.CodeOf(err) != connect.CodeInvalidArgument:
			t.Errorf("signal %s: exit %v, error %v, want an invalid argument", signal, exit, err)
		}
	}
	Eventually(t, "the commands to be gone", func() bool { return !strings.Contains(n.processes(t, "box"), "ignore-term") })
}

// signalled starts a command, sends it signals and returns how it and the
// stream ended.
func signalled(t *testing.T, client remotegpuv1connect.EnvironmentServiceClient, signals ...string) (*remotegpuv1.ExecExit, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream, err := client.ExecCommand(ctx)
	if err != nil {
		t.Fatal(err)
	}
	start := &remotegpuv1.ExecStart{Environment: "box", Argv: []string{"testprog", "ignore-term"}}
	if err := stream.Send(&remotegpuv1.ExecCommandRequest{Message: &remotegpuv1.ExecCommandRequest_Start{Start: start}}); err != nil {
		t.Fatal(err)
	}
	var said []byte
	for !strings.Contains(string(said), "ignoring") {
		answer, err := stream.Receive()
		if err != nil {
			t.Fatalf("the command said %q: %v", said, err)
		}
		said = append(said, answer.GetStdout()...)
	}
	for _, signal := range signals {
		if err := stream.Send(&remotegpuv1.ExecCommandRequest{Message: &remotegpuv1.ExecCommandRequest_Signal{Signal: signal}}); err != nil {
			t.Fatal(err)
		}
	}
	var exit *remotegpuv1.ExecExit
	for {
		answer, err := stream.Receive()
		if err != nil {
			return exit, err
		}
		if answer.GetExit() != nil {
			exit = answer.GetExit()
		}
	}
}
