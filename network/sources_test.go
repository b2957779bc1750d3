package network_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/port"
)

// limited is a mapping that only some networks reach.
func limited(protocol port.Protocol, external, internal uint16, sources ...string) port.Mapping {
	m := published(protocol, external, internal)
	for _, source := range sources {
		m.Sources = append(m.Sources, netip.MustParsePrefix(source))
	}
	return m
}

// TestSourcesOfPublishedPorts: who is not among a mapping's sources finds what
// is on a port that is not published, be it a service of the host's; the host
// and the environment itself get through, and a narrower list ends the
// connections of those it leaves out.
func TestSourcesOfPublishedPorts(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			l := newLab(t, backend)
			const otherIP = "203.0.113.3"
			l.lan.Sh(t, "ip addr add "+otherIP+"/24 dev lan")
			a := l.attach(t, "01ENVA", 0)
			b := l.attach(t, "01ENVB", 31)
			a.Answer(t, "tcp", "0.0.0.0:80", "A")
			a.Answer(t, "udp", "0.0.0.0:53", "A")
			echo(t, a, "0.0.0.0:81")
			publish := func(networks *network.Networks, sources ...string) {
				t.Helper()
				if err := networks.Publish(t.Context(), "01ENVA", networks.Address(0), []port.Mapping{
					limited(port.TCP, 10000, 80, sources...), limited(port.UDP, 10000, 53, sources...), limited(port.TCP, 10001, 81, sources...),
				}); err != nil {
					t.Fatal(err)
				}
				if err := networks.Wait(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			check := func(what, want string) { // of: LAN, its other address, host, loopback, A, B
				t.Helper()
				for _, protocol := range []string{"tcp", "udp"} {
					var got []string
					for i, via := range []func(bool) error{
						func(blocked bool) error { _, err := ask(t, l.lan, protocol, hostIP+":10000", blocked); return err },
						func(blocked bool) error { return askFrom(t, l.lan, protocol, otherIP, hostIP+":10000", blocked) },
						func(blocked bool) error { _, err := ask(t, l.host, protocol, hostIP+":10000", blocked); return err },
						func(blocked bool) error { _, err := ask(t, l.host, protocol, "127.0.0.1:10000", blocked); return err },
						func(blocked bool) error { _, err := ask(t, a, protocol, hostIP+":10000", blocked); return err },
						func(blocked bool) error { _, err := ask(t, b, protocol, hostIP+":10000", blocked); return err },
					} {
						if err := via(want[i] == '-'); err == nil {
							got = append(got, want[i:i+1])
							if want[i] == '-' {
								got[i] = "!"
							}
						} else if got = append(got, "-"); i == 0 && protocol == "tcp" && !errors.Is(err, syscall.ECONNREFUSED) {
							t.Errorf("%s: who is left out gets %v, want it refused as on any closed port", what, err)
						}
					}
					if joined := strings.Join(got, ""); joined != want {
						t.Errorf("%s, %s: reached by %s, want %s", what, protocol, joined, want)
					}
				}
			}
			publish(l.networks, lanIP+"/32")
			check("one address", "L-HPA-")
			conn := connect(t, l.lan)
			publish(l.networks, otherIP+"/32", "10.88.0.0/16")
			check("another, and environments", "-OHPAB")
			if err := converseTCP(conn); err == nil {
				t.Error("a connection of who is left out goes on")
			}
			publish(l.networks, lanIP+"/32")
			conn = connect(t, l.lan)
			publish(l.networks, lanIP+"/31", "198.51.100.0/24")
			if err := converseTCP(conn); err != nil {
				t.Errorf("a connection of who is let in still has ended: %v", err)
			}
			// Who asks for it need not wait for what follows from it.
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			if err := l.networks.Publish(ended, "01ENVA", l.networks.Address(0), []port.Mapping{limited(port.TCP, 10001, 81, otherIP+"/32")}); !errors.Is(err, context.Canceled) {
				t.Errorf("a publish that nobody waits for: %v", err)
			}
			if err := l.networks.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := converseTCP(conn); err == nil {
				t.Error("a connection of who is left out goes on after a publish that nobody waited for")
			}
			publish(l.networks, "0.0.0.0/0")
			check("everybody", "LOHPAB")
			conn = connect(t, l.lan)
			stays := connect(t, l.host)
			closed := l.open(t, func(cfg *network.Config) { cfg.ClosedByDefault = true })
			// Its configuration is another one than that of the daemon before it.
			if err := closed.Restore(t.Context(), []port.Published{{
				EnvID: "01ENVA", Address: l.networks.Address(0), Mappings: []port.Mapping{limited(port.TCP, 10001, 81)},
			}}, nil); err != nil {
				t.Fatal(err)
			}
			if err := closed.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := converseTCP(conn); err == nil {
				t.Error("a connection of who is left out by another configuration goes on")
			}
			if err := converseTCP(stays); err != nil {
				t.Errorf("the host's own connection has ended: %v", err)
			}
			publish(closed)
			check("closed by default", "--HPAB")
			publish(closed, "0.0.0.0/0")
			check("closed by default, but for everybody", "LOHPAB")
			// A daemon that starts takes over what is closed as closed.
			publish(closed)
			if err := l.open(t, nil).Publish(t.Context(), "01ENVB", l.networks.Address(31), nil); err != nil {
				t.Fatal(err)
			}
			check("after a restart", "--HPAB")
			conn = connect(t, l.host)
			// Of a restore that leaves a mapping out nobody knows what led there.
			if err := closed.Restore(t.Context(), nil, nil); err != nil {
				t.Fatal(err)
			}
			if err := closed.Withdraw(t.Context(), "01ENVA", []port.Mapping{published(port.TCP, 10001, 81)}); err != nil {
				t.Fatal(err)
			}
			if err := closed.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := converseTCP(conn); err == nil {
				t.Error("a connection through a mapping that is over goes on")
			}
			publish(closed)
			if err := closed.Withdraw(t.Context(), "01ENVA", []port.Mapping{published(port.TCP, 10000, 80), published(port.UDP, 10000, 53)}); err != nil {
				t.Fatal(err)
			}
			if got, err := ask(t, l.host, "tcp", hostIP+":10000", true); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("a withdrawn port: %q, %v, want it refused", got, err)
			}
			if err := converseTCP(connect(t, l.host)); err != nil {
				t.Errorf("what was not withdrawn: %v", err)
			}
			cleanUp(t, l)
		})
	}
}

// askFrom asks from one of several addresses of a host.
func askFrom(t *testing.T, from *testutil.Namespace, protocol, source, address string, blocked bool) (err error) {
	t.Helper()
	wait := patience
	if blocked {
		wait = quiet
	}
	from.Do(t, func() {
		dialer := net.Dialer{Timeout: wait, LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
		if protocol == "udp" {
			dialer.LocalAddr = &net.UDPAddr{IP: net.ParseIP(source)}
		}
		var conn net.Conn
		if conn, err = dialer.DialContext(t.Context(), protocol+"4", address); err != nil {
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(wait))
		if _, err = conn.Write([]byte("?")); err == nil {
			_, err = conn.Read(make([]byte, 16))
		}
	})
	return err
}

// echo sends back what it gets.
func echo(t *testing.T, on *testutil.Namespace, address string) {
	t.Helper()
	var listener net.Listener
	var err error
	on.Do(t, func() { listener, err = net.Listen("tcp4", address) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()
}

// connect opens a connection to the echo that stays.
func connect(t *testing.T, from *testutil.Namespace) (conn net.Conn) {
	t.Helper()
	var err error
	from.Do(t, func() { conn, err = net.DialTimeout("tcp4", hostIP+":10001", patience) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// converseTCP tells whether the other end of a connection is still there.
func converseTCP(conn net.Conn) error {
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write([]byte("?")); err != nil {
		return err
	}
	if got, err := conn.Read(make([]byte, 64)); err != nil {
		return fmt.Errorf("read %d bytes: %w", got, err)
	}
	return nil
}
