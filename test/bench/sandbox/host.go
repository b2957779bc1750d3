package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
)

// The two ends of the uplink (TEST-NET-2 of RFC 5737).
const (
	HostAddress   = "198.51.100.1"
	ClientAddress = "198.51.100.2"
)

// Host is a network namespace that stands for a host on a network: it has one
// uplink, which ends in the namespace of a client and nowhere else.
type Host struct {
	NS     *NetNS
	client *NetNS
}

// NewHost makes a host and its client.
func NewHost() (*Host, error) {
	host := &Host{}
	if err := host.connect(); err != nil {
		return nil, errors.Join(err, host.Close())
	}
	return host, nil
}

// Client is the namespace of the client.
func (h *Host) Client() *NetNS { return h.client }

// Close lets go of both.
func (h *Host) Close() error {
	var failures []error
	for _, ns := range []*NetNS{h.NS, h.client} {
		if ns != nil {
			failures = append(failures, ns.Close())
		}
	}
	return errors.Join(failures...)
}

func (h *Host) connect() error {
	var err error
	if h.NS, err = NewNetNS(); err != nil {
		return err
	}
	if h.client, err = NewNetNS(); err != nil {
		return err
	}
	err = h.NS.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "uplink"
		link := &netlink.Veth{LinkAttrs: attrs, PeerName: "uplink", PeerNamespace: netlink.NsFd(h.client.FD())}
		if err := netlink.LinkAdd(link); err != nil {
			return fmt.Errorf("add uplink: %w", err)
		}
		if err := raise(HostAddress); err != nil {
			return err
		}
		// A host forwards; the peers' daemons set it too.
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
			return fmt.Errorf("enable forwarding: %w", err)
		}
		if err := netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(ClientAddress)}); err != nil {
			return fmt.Errorf("add default route: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return h.client.Do(func() error { return raise(ClientAddress) })
}

// raise sets loopback and uplink up and gives the uplink its address.
func raise(address string) error {
	for _, name := range []string{"lo", "uplink"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		if name == "uplink" {
			addr, err := netlink.ParseAddr(address + "/24")
			if err != nil {
				return fmt.Errorf("parse address of uplink: %w", err)
			}
			if err := netlink.AddrAdd(link, addr); err != nil {
				return fmt.Errorf("give uplink its address: %w", err)
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
	}
	return nil
}

// AwaitBanner connects from the client to a port of the host until the banner
// comes, at most for a time. A refused, hanging or empty connection (a proxy
// that answers before the container does) is tried again after half a
// millisecond.
func (h *Host) AwaitBanner(ctx context.Context, port int, banner string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return h.client.Do(func() error {
		for {
			err := greet(ctx, port, banner)
			if err == nil {
				return nil
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("await port %d: %w", port, errors.Join(ctx.Err(), err))
			case <-time.After(500 * time.Microsecond):
			}
		}
	})
}

// Answers tells whether the port answers with the banner now.
func (h *Host) Answers(ctx context.Context, port int, banner string) (bool, error) {
	answers := false
	err := h.client.Do(func() error {
		answers = greet(ctx, port, banner) == nil
		return nil
	})
	return answers, err
}

// greet is one attempt. It runs on a thread that is in the client's namespace:
// the dial of one address stays on the calling thread.
func greet(ctx context.Context, port int, banner string) error {
	target := netip.MustParseAddr(HostAddress).String()
	// Short, so that a SYN dropped on a half-made path costs no more than this
	// (the kernel would repeat it after a second).
	dialer := net.Dialer{Timeout: 10 * time.Millisecond}
	conn, err := dialer.DialContext(ctx, "tcp4", net.JoinHostPort(target, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(250 * time.Millisecond))
	got := make([]byte, len(banner))
	if _, err := io.ReadFull(conn, got); err != nil {
		return fmt.Errorf("read banner: %w", err)
	}
	if string(got) != banner {
		return fmt.Errorf("banner is %q", got)
	}
	return nil
}
