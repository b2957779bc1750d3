package node

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// addresses is where people reach what the node offers.
type addresses struct{ node *Node }

// hosts are the names and addresses that people may reach the node by, the best
// first. They may change: a daemon may start before the host has an address, and
// a host moves.
type hosts struct {
	look func() []string

	mu    sync.Mutex
	found []string
	until time.Time
}

// hostFor is how long what was found is taken to be so: a list of environments
// asks for it hundreds of times, and with as many bridges a look takes
// milliseconds. Longer, and people would be told where the host was before.
const hostFor = 200 * time.Millisecond

// now returns them; there is one at least. The caller does not change them.
func (h *hosts) now() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now(); now.After(h.until) {
		h.found, h.until = h.look(), now.Add(hostFor)
	}
	return h.found
}

// nameLimit is the longest host name (RFC 1035 section 2.3.4, as text).
const nameLimit = 253

// Host is the environment's name in the zone that people resolve, if there is
// one. It is the whole name: the short one means another environment to those in
// another project. Else it is the configured public host, or the address that
// the default route uses, which may change.
func (a addresses) Host(name, project string) string {
	if zone := a.node.cfg.DNS.PublicZone(); zone != "" {
		if host := name + "." + project + "." + zone; len(host) <= nameLimit {
			return host
		}
	}
	return a.node.hosts.now()[0]
}

// Desktop is the page of a desktop at the gateway, by the address that the host
// has now unless [gateway] says another.
func (a addresses) Desktop(envID string) string {
	if a.node.gateway == nil {
		return ""
	}
	return a.node.gateway.URL(envID)
}

// defaultAddress is the address of this host that packets to elsewhere have.
// Nothing is sent: the kernel looks the route up when a socket is connected to
// an address that is nobody's (RFC 5737).
func defaultAddress() (netip.Addr, bool) {
	conn, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 9})
	if err != nil {
		return netip.Addr{}, false // there is no such route
	}
	defer conn.Close() //nolint:errcheck // nothing was written to it
	local, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.Addr{}, false
	}
	address, ok := netip.AddrFromSlice(local.IP.To4())
	return address, ok && address.IsGlobalUnicast()
}
