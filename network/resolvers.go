package network

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// maxResolvers is how many name servers a resolver reads (MAXNS in resolv.h).
const maxResolvers = 3

// Resolvers returns the name servers and search domains for environments: the
// node itself, while it answers; else the host's, when they are not on the host
// itself; behind a local stub those that systemd-resolved uses; else the
// configured ones; else NO_UPSTREAM_DNS.
func (n *Networks) Resolvers() (servers []netip.Addr, search []string, err error) {
	if n.cfg.Responder != nil {
		if domain, serving := n.cfg.Responder(); serving {
			_, host := n.Upstreams()
			search = []string{domain}
			for _, other := range n.search(host) {
				if !slices.Contains(search, other) {
					search = append(search, other)
				}
			}
			// No second server: a resolver that asks both at once, or the
			// other when one is slow, would learn from it that the names of
			// environments do not exist.
			return []netip.Addr{n.NodeAddress()}, search, nil
		}
	}
	return n.direct()
}

// direct are the name servers that environments reach without the node's help.
func (n *Networks) direct() (servers []netip.Addr, search []string, err error) {
	local, err := net.InterfaceAddrs()
	if err != nil {
		return nil, nil, failed("list the host's addresses", err)
	}
	var unusable []string
	for _, path := range []string{n.cfg.ResolvConf, n.cfg.ResolvedConf} {
		named, domains, err := readResolvConf(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, failed("read "+path, err)
		}
		for _, server := range named {
			if reachable(server, local) {
				servers = append(servers, server)
			} else {
				unusable = append(unusable, server.String())
			}
		}
		if len(servers) > 0 {
			return servers[:min(len(servers), maxResolvers)], n.search(domains), nil
		}
		if search == nil {
			search = domains
		}
	}
	if len(n.cfg.Upstreams) > 0 {
		return slices.Clone(n.cfg.Upstreams[:min(len(n.cfg.Upstreams), maxResolvers)]), n.search(search), nil
	}
	message := "the host names no DNS server"
	if len(unusable) > 0 {
		message = "environments cannot reach the host's DNS servers (" + strings.Join(unusable, ", ") + ")"
	}
	return nil, nil, problem.New(problem.NoUpstreamDNS, "%s", message).
		WithHint("Configure upstream DNS servers for the node: IPv4 addresses that are not the host's own.")
}

func (n *Networks) search(domains []string) []string {
	if len(n.cfg.Search) > 0 {
		return slices.Clone(n.cfg.Search)
	}
	return domains
}

// reachable tells whether environments get to a server: they have IPv4 only,
// services of the host are closed to them and so is the link-local network,
// where clouds keep their metadata.
func reachable(server netip.Addr, local []net.Addr) bool {
	if !server.Is4() || server.IsLoopback() || server.IsUnspecified() || server.IsLinkLocalUnicast() || server.IsMulticast() {
		return false
	}
	return !slices.ContainsFunc(local, func(address net.Addr) bool {
		prefix, err := netip.ParsePrefix(address.String())
		return err == nil && prefix.Addr() == server
	})
}

// readResolvConf reads a resolv.conf(5). What it cannot read in it, it skips,
// as resolvers do.
func readResolvConf(path string) (servers []netip.Addr, search []string, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = file.Close() }()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if server, err := netip.ParseAddr(fields[1]); err == nil {
				servers = append(servers, server.Unmap())
			}
		case "search", "domain": // the last one counts
			search = slices.DeleteFunc(slices.Clone(fields[1:]), func(domain string) bool { return domain == "." })
		}
	}
	if err := lines.Err(); err != nil {
		return nil, nil, fmt.Errorf("read lines: %w", err)
	}
	return servers, search, nil
}
