package node

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// addresses is where people reach what the node offers.
type addresses struct {
	node *Node

	mu    sync.Mutex
	host  string // that was found last
	until time.Time
}

// hostFor is how long an address of the host is taken to be its address: a
// list of environments asks for it hundreds of times.
const hostFor = 10 * time.Second

// nameLimit is the longest host name (RFC 1035 section 2.3.4, as text).
const nameLimit = 253

// Host is the environment's name in the zone that people resolve, if there is
// one. It is the whole name: the short one means another environment to those in
// another project. Else it is the configured public host, or the address that
// the default route uses, which may change.
func (a *addresses) Host(name, project string) string {
	if zone := a.node.cfg.DNS.PublicZone(); zone != "" {
		if host := name + "." + project + "." + zone; len(host) <= nameLimit {
			return host
		}
	}
	if host := a.node.cfg.Node.PublicHost; host != "" {
		return host
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := time.Now(); now.After(a.until) {
		a.host, a.until = hostNames("", a.node.cfg.Node.Name, "", a.node.addresses, a.node.range6)[0], now.Add(hostFor)
	}
	return a.host
}

// Desktop is the page of a desktop at the gateway.
func (a *addresses) Desktop(envID string) string {
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
