package containerd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// What content is written to tells whether containerd has gone, or is there and
// has ended the writing. White-box: which of a stream's calls fails when
// containerd is killed is chance, and here it is always the sending.
func TestWhyContentCannotBeWritten(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(*grpc.Server, grpc.ServerStream) error // what the server does
		want func(error) bool
	}{
		"killed": {
			func(server *grpc.Server, stream grpc.ServerStream) error {
				go server.Stop()
				<-stream.Context().Done()
				return stream.Context().Err()
			},
			func(err error) bool { p := problem.Of(err); return p.Reason == problem.ContainerdDown && p.Hint != "" },
		},
		"refused": {
			func(*grpc.Server, grpc.ServerStream) error { return status.Error(codes.FailedPrecondition, "not that") },
			errdefs.IsFailedPrecondition,
		},
		"ended": {
			func(*grpc.Server, grpc.ServerStream) error { return nil },
			func(err error) bool { return errors.Is(err, io.EOF) && !errdefs.IsUnavailable(err) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "c.sock")
			listener, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			var server *grpc.Server
			server = grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
				if err := stream.RecvMsg(new(contentapi.WriteContentRequest)); err != nil {
					return err
				}
				if err := stream.SendMsg(&contentapi.WriteContentResponse{Offset: 1}); err != nil { // which is passed over
					return err
				}
				return test.end(server, stream)
			}))
			go func() { _ = server.Serve(listener) }()
			t.Cleanup(server.Stop)
			e, err := New(Config{Address: socket, Namespace: "test", FIFODir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			conn, ok := e.client.Conn().(grpc.ClientConnInterface)
			if !ok {
				t.Fatalf("a connection of type %T", e.client.Conn())
			}
			stream, err := contentapi.NewContentClient(conn).Write(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for err == nil { // until the server's window is full, and then until it ends
				err = stream.Send(&contentapi.WriteContentRequest{Action: contentapi.WriteAction_WRITE, Data: make([]byte, 1<<10)})
			}
			if err := e.explain(t.Context(), err); !test.want(err) {
				t.Errorf("%s: %v", problem.Of(err).Reason, err)
			}
		})
	}
	e := &Engine{}
	if err := e.explain(t.Context(), fmt.Errorf("fetch: %w", io.EOF)); errdefs.IsUnavailable(err) {
		t.Errorf("the end of what a registry sends: %v", err)
	}
}
