package network

import (
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"
)

// lookAgain is how often the host's resolv.conf is looked at while it is asked
// for.
const lookAgain = time.Second

// dnsPort is where name servers of resolv.conf listen.
const dnsPort = 53

// hostServers remembers what the host's files named when they last changed.
type hostServers struct {
	mu      sync.Mutex
	looked  time.Time
	stamps  [2]stamp
	servers []netip.AddrPort
	search  []string
}

// stamp tells one content of a file from another.
type stamp struct {
	modified time.Time
	size     int64
}

func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stamp{modified: info.ModTime(), size: info.Size()}
}

// Upstreams returns the name servers that the host itself uses, for asking on
// behalf of environments: unlike those of Resolvers they may be on the host,
// link-local, or of IPv6. Of systemd-resolved's stub those are taken that it
// asks; without any the configured ones. search are the domains of the site. A
// change of the files is noticed within a second.
func (n *Networks) Upstreams() (servers []netip.AddrPort, search []string) {
	h := &n.host
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.looked) < lookAgain && !h.looked.IsZero() {
		return h.servers, h.search
	}
	h.looked = time.Now()
	stamps := [2]stamp{stampOf(n.cfg.ResolvConf), stampOf(n.cfg.ResolvedConf)}
	if stamps == h.stamps && h.servers != nil {
		return h.servers, h.search
	}
	named, domains, err := readResolvConf(n.cfg.ResolvConf)
	if err != nil { // such as in the middle of being replaced: it is read again
		named, stamps = nil, [2]stamp{}
	}
	if slices.ContainsFunc(named, isStub) {
		if behind, more, err := readResolvConf(n.cfg.ResolvedConf); err == nil && len(behind) > 0 {
			named, domains = append(slices.DeleteFunc(named, isStub), behind...), append(domains, more...)
		}
	}
	if len(named) == 0 {
		named = n.cfg.Upstreams
	}
	h.stamps, h.servers, h.search = stamps, make([]netip.AddrPort, 0, len(named)), domains
	for _, server := range named {
		to := netip.AddrPortFrom(server, dnsPort)
		if server != n.NodeAddress() && !server.IsUnspecified() && !slices.Contains(h.servers, to) {
			h.servers = append(h.servers, to)
		}
	}
	return h.servers, h.search
}

// isStub says whether a server is systemd-resolved's own listener.
func isStub(server netip.Addr) bool {
	return server == netip.AddrFrom4([4]byte{127, 0, 0, 53}) || server == netip.AddrFrom4([4]byte{127, 0, 0, 54})
}
