package netbench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	goruntime "runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/test/bench/sandbox"
)

// missPort is a service of the host that no rule is about.
const missPort = 7001

// The two ends of the uplink in IPv6 (RFC 3849).
const (
	hostAddress6   = "2001:db8::1"
	clientAddress6 = "2001:db8::2"
)

// path is a host with rules, a client on its network and environments behind
// it.
type path struct {
	name      string
	host      *sandbox.Host
	close     func()
	listeners []int
	series    []series
}

// newHost makes a host whose uplink has both address families.
func newHost(ctx context.Context) (*sandbox.Host, error) {
	host, err := sandbox.NewHost()
	if err != nil {
		return nil, err
	}
	for _, end := range []struct {
		ns      *sandbox.NetNS
		address string
	}{{host.NS, hostAddress6}, {host.Client(), clientAddress6}} {
		err = errors.Join(err, end.ns.Do(func() error { return script(ctx, "ip addr add "+end.address+"/64 dev uplink nodad") }))
	}
	if err != nil {
		return nil, errors.Join(err, host.Close())
	}
	return host, nil
}

// newPath makes a host with the networks of some environments, as plain as can
// be, and applies rules to it.
func newPath(ctx context.Context, name string, environments []int, apply func(context.Context) error) (_ *path, err error) {
	p := &path{name: name}
	var spaces []*sandbox.NetNS
	p.close = func() {
		p.hush()
		for _, ns := range spaces {
			ns.Close()
		}
		if p.host != nil {
			p.host.Close()
		}
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.host, err = newHost(ctx); err != nil {
		return nil, err
	}
	for _, environment := range environments {
		ns, err := sandbox.NewNetNS()
		if err != nil {
			return nil, err
		}
		spaces = append(spaces, ns)
		if err := p.attach(ctx, ns, environment); err != nil {
			return nil, err
		}
	}
	err = p.host.NS.Do(func() error {
		return errors.Join(script(ctx, "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding"), apply(ctx))
	})
	if err != nil {
		return nil, err
	}
	return p, p.listenAll(spaces)
}

// attach makes the bridge of an environment and its pair of interfaces.
func (p *path) attach(ctx context.Context, ns *sandbox.NetNS, environment int) error {
	inside := target(environment)
	inside6, gateway6 := twin(inside), twin(inside.Prev())
	bridge := fmt.Sprintf("rgpu-bench%d", environment)
	err := p.host.NS.Do(func() error {
		return script(ctx, fmt.Sprintf(`ip link add %[1]s type bridge
			ip addr add %[2]s/29 dev %[1]s
			ip addr add %[3]s/64 dev %[1]s nodad
			ip link set %[1]s up
			ip link add rgpuv-bench%[4]d master %[1]s type veth peer name eth0 netns /proc/%[5]d/fd/%[6]d
			ip link set rgpuv-bench%[4]d up`, bridge, inside.Prev(), gateway6, environment, os.Getpid(), ns.FD()))
	})
	if err != nil {
		return err
	}
	return ns.Do(func() error {
		return script(ctx, fmt.Sprintf(`ip link set lo up
			ip link set eth0 up
			ip addr add %s/29 dev eth0
			ip addr add %s/64 dev eth0 nodad
			ip route add default via %s
			ip route add ::/0 via %s`, inside, inside6, inside.Prev(), gateway6))
	})
}

// twin is the address of IPv6 that goes with one of an environment, or of its
// gateway.
func twin(address netip.Addr) netip.Addr {
	twins := firewall.Twins{Subnet: netip.MustParsePrefix(rangeOf), Subnet6: netip.MustParsePrefix(rangeOf6)}
	return twins.Of(address)
}

// listenAll listens on what environments publish, and on the host's own port.
func (p *path) listenAll(environments []*sandbox.NetNS) error {
	err := p.host.NS.Do(func() error { return p.listen(missPort) })
	for _, ns := range environments {
		err = errors.Join(err, ns.Do(func() error {
			var errs []error
			for _, s := range services {
				errs = append(errs, p.listen(int(s.inner)))
			}
			return errors.Join(errs...)
		}))
	}
	return err
}

// listen listens on a TCP port of both address families, unless it does.
func (p *path) listen(number int) error {
	for domain, address := range map[int]unix.Sockaddr{
		unix.AF_INET: &unix.SockaddrInet4{Port: number}, unix.AF_INET6: &unix.SockaddrInet6{Port: number},
	} {
		fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("make socket for port %d: %w", number, err)
		}
		if domain == unix.AF_INET6 {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
		}
		if err == nil {
			err = unix.Bind(fd, address)
		}
		if errors.Is(err, unix.EADDRINUSE) { // by two services, of which one is UDP
			unix.Close(fd)
			continue
		}
		p.listeners = append(p.listeners, fd)
		if err := errors.Join(err, unix.Listen(fd, 4096)); err != nil {
			return fmt.Errorf("listen on port %d: %w", number, err)
		}
	}
	return nil
}

// hush closes the listeners.
func (p *path) hush() {
	for _, fd := range p.listeners {
		unix.Close(fd)
	}
	p.listeners = nil
}

// drain takes connections off the listeners, which would be full otherwise.
func (p *path) drain() {
	for _, fd := range p.listeners {
		for {
			conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
			if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
				continue
			}
			if err != nil {
				break
			}
			unix.Close(conn)
		}
	}
}

// connects times so many connections from the client, one after the other, on
// one CPU, and returns microseconds.
func (p *path) connects(to netip.AddrPort, count int) ([]float64, error) {
	times := make([]float64, 0, count)
	err := p.host.Client().Do(func() error {
		defer pin()()
		for range count {
			took, err := connect(to)
			if err != nil {
				return fmt.Errorf("%s: connect to %s: %w", p.name, to, err)
			}
			times = append(times, float64(took.Nanoseconds())/1000)
		}
		p.drain()
		return nil
	})
	return times, err
}

// pin keeps the calling thread, which is locked, on one CPU.
func pin() (undo func()) {
	var before, one unix.CPUSet
	if unix.SchedGetaffinity(0, &before) != nil {
		return func() {}
	}
	one.Set(goruntime.NumCPU() - 1)
	if unix.SchedSetaffinity(0, &one) != nil {
		return func() {}
	}
	return func() { unix.SchedSetaffinity(0, &before) }
}

// connect makes a connection and breaks it, so that no socket waits for its
// end.
func connect(to netip.AddrPort) (took time.Duration, err error) {
	domain, address := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		domain, address = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return 0, err
	}
	begun := time.Now()
	err = unix.Connect(fd, address)
	took = time.Since(begun)
	if errors.Is(err, unix.EINTR) {
		// A signal of Go's own scheduler; the connection is being made.
		return connect(to)
	}
	return took, err
}
