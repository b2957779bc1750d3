package node

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"syscall"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/certificate"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/rpc"
)

// drainTime is how long calls at work may take when the daemon stops.
const drainTime = 10 * time.Second

// errStopping is what calls are told that are at work when the daemon stops.
var errStopping error = problem.New(problem.NodeStopping, "the node is stopping").
	WithHint("try again when it is back; operations go on then")

// patience is how long a caller over the network may answer nothing before its
// connection is closed: it has gone without a word, as when its machine lost
// its power or its network, and what it runs and holds goes with it.
const patience = 30 * time.Second

// apiListener is one place where the API is served.
type apiListener struct {
	net.Listener
	token string // "": none is asked for
	// scrape is a token that opens the metrics and nothing else.
	scrape string
	tls    *tls.Config
	local  bool // no network is between caller and node
	// patience with callers that do not answer; 0: none can vanish unseen.
	patience time.Duration
}

// listen opens the unix socket, for root, and the TCP address, for who has the
// token. Beyond loopback TCP speaks TLS.
func (n *Node) listen(ctx context.Context) ([]*apiListener, error) {
	if err := os.Remove(n.cfg.API.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err) // ours: the lock is held
	}
	var config net.ListenConfig
	socket, err := config.Listen(ctx, "unix", n.cfg.API.Socket)
	if err != nil {
		return nil, fmt.Errorf("listen on unix socket: %w", err)
	}
	if err := os.Chmod(n.cfg.API.Socket, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect unix socket: %w", err), socket.Close())
	}
	listeners := []*apiListener{{Listener: socket, local: true}}
	if n.cfg.API.Listen == "" {
		return listeners, nil
	}
	listener, err := listenTCP(ctx, n.cfg.API.Listen, patience)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for the API: %w", err), socket.Close())
	}
	api := &apiListener{Listener: listener, token: n.token, scrape: n.scrape, patience: patience}
	if address, err := netip.ParseAddrPort(listener.Addr().String()); err != nil || !address.Addr().Unmap().IsLoopback() {
		if api.tls, err = n.apiCertificate(); err != nil {
			return nil, errors.Join(err, socket.Close(), listener.Close())
		}
	}
	return append(listeners, api), nil
}

// listenTCP listens for callers whose connections the kernel closes when they
// are gone. One that is idle is asked after half the patience. One that has
// not acknowledged what was sent, or has no room for more, has twice the
// patience, as there HTTP/1.1 has no other way to tell who is only slow.
func listenTCP(ctx context.Context, address string, patience time.Duration) (net.Listener, error) {
	config := net.ListenConfig{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: patience / 2, Interval: patience / 6, Count: 3},
		Control: func(_, _ string, raw syscall.RawConn) error {
			var err error // what is accepted inherits the option: tcp(7)
			if controlErr := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int((2 * patience).Milliseconds()))
			}); controlErr != nil {
				return controlErr
			}
			if err != nil {
				return fmt.Errorf("set TCP_USER_TIMEOUT: %w", err)
			}
			return nil
		},
	}
	config.SetMultipathTCP(false) // it does not have the option on every kernel
	return config.Listen(ctx, "tcp", address)
}

func (n *Node) apiCertificate() (*tls.Config, error) {
	// Programs trust the very certificate: it is another one after a start only.
	hosts := hostNames(n.cfg.Node.PublicHost, n.cfg.Node.Name, n.cfg.API.Listen, n.addresses)
	source, err := certificate.New(certificate.Config{
		CertFile: n.cfg.API.TLSCert, KeyFile: n.cfg.API.TLSKey, Path: n.statePath("api-tls.pem"),
		Hosts: func() []string { return hosts }, Name: "remotegpu " + n.cfg.Node.Name, Log: n.log,
	})
	if err != nil {
		return nil, fmt.Errorf("certificate of the API: %w", err)
	}
	return source.TLS(), nil
}

// serve serves until ctx ends, then lets calls at work finish for a while.
func (l *apiListener) serve(ctx context.Context, handler http.Handler, log *slog.Logger) error {
	if l.token != "" {
		handler = authenticate(l.token, l.scrape, handler)
	}
	if l.local {
		handler = uncompressed(handler)
	}
	requests, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, TLSConfig: l.tls,
		BaseContext: func(net.Listener) context.Context { return requests },
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		Protocols:   new(http.Protocols),
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetHTTP2(true)
	server.Protocols.SetUnencryptedHTTP2(l.tls == nil)
	if l.patience > 0 { // else a caller that is only stopped (SIGSTOP) keeps its streams
		server.HTTP2 = &http.HTTP2Config{SendPingTimeout: l.patience / 2, PingTimeout: l.patience / 2, WriteByteTimeout: l.patience}
	}
	drained := make(chan error, 1)
	defer context.AfterFunc(ctx, func() {
		// Not one that ends with the requests, which have to send their answers.
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		// Streams never end by themselves: a moment for short calls, then they go.
		timer := time.AfterFunc(time.Second, func() { stop(errStopping) })
		defer timer.Stop()
		err := server.Shutdown(limit)
		if err != nil {
			err = server.Close()
		}
		drained <- err
	})()
	var err error
	if l.tls != nil {
		err = server.ServeTLS(l.Listener, "", "")
	} else {
		err = server.Serve(l.Listener)
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the API on %s: %w", l.Addr(), err)
	}
	return <-drained
}

// uncompressed answers callers on the node itself without compression, though
// clients say by default that they understand it: it costs more time than all
// else that a long list takes.
func uncompressed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, accepted := range []string{"Accept-Encoding", "Connect-Accept-Encoding", "Grpc-Accept-Encoding"} {
			r.Header.Del(accepted)
		}
		next.ServeHTTP(w, r)
	})
}

// authenticate lets only callers with the token through, and to the metrics also
// those with the token for them. Health needs none.
func authenticate(token, scrape string, next http.Handler) http.Handler {
	errorWriter := connecthttp.NewErrorWriter()
	has := func(r *http.Request, token string) bool {
		return token != "" && subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte("Bearer "+token)) == 1
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if has(r, token) || r.URL.Path == "/grpc.health.v1.Health/Check" || r.URL.Path == metricsPath && has(r, scrape) {
			next.ServeHTTP(w, r)
			return
		}
		var refusal error = rpc.Unauthenticated()
		if errorWriter.IsSupported(r) {
			if err := errorWriter.Write(w, r, refusal); err == nil {
				return
			}
		}
		http.Error(w, connect.CodeUnauthenticated.String(), http.StatusUnauthorized)
	})
}
