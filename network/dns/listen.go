package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	goruntime "runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/tick"
)

// maxSockets is how many UDP sockets share an address by default: the kernel
// spreads clients over them, and more than these gain nothing.
const maxSockets = 4

// Listener is an address that a Server listens on.
type Listener struct {
	server      *Server
	ours        bool
	connections quota // each address has its own: who uses up one leaves the others alone
	udp         []*net.UDPConn
	tcp         *net.TCPListener
}

// Listen opens UDP and TCP sockets on an address; Serve answers. ours is where
// environments ask, and the only place where they are known by their addresses:
// it need not be there yet, and other servers may listen on all of the host's
// addresses over UDP: theirs are those that nobody else listens on. On error
// nothing is left open.
func (s *Server) Listen(ctx context.Context, address netip.AddrPort, ours bool) (_ *Listener, err error) {
	l := &Listener{server: s, ours: ours, connections: quota{each: maxConnectionsOfOne, all: maxConnections}}
	defer func() {
		if err != nil {
			protocol := ""
			if failed := new(net.OpError); errors.As(err, &failed) { // which names the address, too
				protocol, err = failed.Net+" ", failed.Err
			}
			err = errors.Join(fmt.Errorf("listen for DNS on %s%s: %w", protocol, address, err), l.Close())
		}
	}()
	sockets := s.cfg.Sockets
	if sockets <= 0 {
		sockets = min(maxSockets, goruntime.GOMAXPROCS(0))
	}
	family := "6"
	if address.Addr().Is4() {
		family = "4"
	}
	config := net.ListenConfig{Control: func(network, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) { failed = prepare(int(fd), network, ours, sockets > 1) })
		return errors.Join(err, failed)
	}}
	for range sockets {
		conn, err := config.ListenPacket(ctx, "udp"+family, address.String())
		if err != nil {
			return nil, err
		}
		udp, ok := conn.(*net.UDPConn)
		if !ok {
			return nil, errors.Join(errors.New("it is no UDP socket"), conn.Close())
		}
		l.udp = append(l.udp, udp)
		address = addressOf(conn.LocalAddr()) // a port that was picked is the others', too
	}
	listener, err := config.Listen(ctx, "tcp"+family, address.String())
	if err != nil {
		return nil, err
	}
	tcp, ok := listener.(*net.TCPListener)
	if !ok {
		return nil, errors.Join(errors.New("it is no TCP socket"), listener.Close())
	}
	l.tcp = tcp
	return l, nil
}

// prepare sets what has to be set before a socket is bound.
func prepare(fd int, network string, ours, shared bool) error {
	udp := network[:3] == "udp"
	var errs []error
	set := func(level, option, value int) {
		if err := unix.SetsockoptInt(fd, level, option, value); err != nil {
			errs = append(errs, err)
		}
	}
	if ours {
		set(unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
	}
	if udp && shared {
		set(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}
	if udp && ours {
		set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if udp {
		// A burst waits here rather than being lost. Without privilege the
		// host's own bound stays.
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) != nil {
			set(unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
		}
	}
	return errors.Join(errs...)
}

// Address is where it listens.
func (l *Listener) Address() netip.AddrPort {
	return addressOf(l.tcp.Addr())
}

// addressOf is the address of a socket.
func addressOf(address net.Addr) netip.AddrPort {
	parsed, err := netip.ParseAddrPort(address.String())
	if err != nil {
		return netip.AddrPort{} // those of TCP and UDP can be read
	}
	return netip.AddrPortFrom(parsed.Addr().Unmap(), parsed.Port())
}

// Close closes the sockets; Serve returns then.
func (l *Listener) Close() error {
	var errs []error
	for _, conn := range l.udp {
		errs = append(errs, conn.Close())
	}
	if l.tcp != nil {
		errs = append(errs, l.tcp.Close())
	}
	return errors.Join(errs...)
}

// Serve answers until ctx ends, then closes the sockets and waits for what is
// at work. Nobody else closes them: an error is a socket that broke.
func (l *Listener) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		work  sync.WaitGroup
		mu    sync.Mutex
		first error
	)
	run := func(serve func(context.Context, *sync.WaitGroup) error) {
		work.Go(func() {
			if err := serve(ctx, &work); err != nil && ctx.Err() == nil {
				mu.Lock()
				first = errors.Join(first, err)
				mu.Unlock()
				cancel()
			}
		})
	}
	for _, conn := range l.udp {
		run(func(ctx context.Context, work *sync.WaitGroup) error { return l.serveUDP(ctx, conn, work) })
	}
	run(l.serveTCP)
	<-ctx.Done()
	closed := l.Close()
	work.Wait()
	if first == nil {
		return closed
	}
	return fmt.Errorf("serve DNS on %s: %w", l.Address(), first)
}

// serveUDP answers what comes to a socket, one question after the other: what
// is known is answered faster than a goroutine is made.
func (l *Listener) serveUDP(ctx context.Context, conn *net.UDPConn, work *sync.WaitGroup) error {
	message, out := make([]byte, maxQuestion), make([]byte, 0, maxTCP)
	var q query
	for {
		size, from, err := conn.ReadFromUDPAddrPort(message)
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return nil //nolint:nilerr // it is closed when ctx ends
		}
		if err != nil {
			// Such as no memory: the next one may fare better.
			l.server.cfg.Log.DebugContext(ctx, "a DNS question was not read", "error", err)
			tick.Pause(ctx, time.Millisecond)
			continue
		}
		answer, later := l.server.handle(&q, message[:size], out[:0], asker{from.Addr().Unmap(), l.ours}, false)
		if later != nil {
			work.Add(1)
			l.server.forward(ctx, later, work.Done, func(answer []byte) { l.send(ctx, conn, answer, from) })
			continue
		}
		if len(answer) > 0 {
			l.send(ctx, conn, answer, from)
		}
	}
}

// send sends an answer, which the client asks for again when it was lost.
func (l *Listener) send(ctx context.Context, conn *net.UDPConn, answer []byte, to netip.AddrPort) {
	if _, err := conn.WriteToUDPAddrPort(answer, to); err != nil && ctx.Err() == nil {
		l.server.cfg.Log.DebugContext(ctx, "a DNS answer was not sent", "to", to, "error", err)
	}
}
