// Package names compares the node's DNS responder with CoreDNS: both serve the
// same zone, one after the other, to the same dnsperf.
package names

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/remotegpu/remotegpu/network/dns"
)

// ServeArg makes the benchmark serve the zone: it is its own responder.
const ServeArg = "serve-names"

const (
	zone     = "gpu.internal"
	hosts    = 1000
	nodeAddr = "10.88.0.1"
)

// serving is what the responder is asked to do.
type serving struct {
	Address string
	// PerSecond limits the answers to one network; 0: none. The benchmark's own
	// address is exempt.
	PerSecond int
}

// Serve serves the zone with the node's responder until SIGTERM.
func Serve(ctx context.Context, arg string) error {
	var asked serving
	if err := json.Unmarshal([]byte(arg), &asked); err != nil {
		return fmt.Errorf("decode what to serve: %w", err)
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	server := dns.NewServer(dns.Config{
		Allow:     []netip.Prefix{loopback},
		RateLimit: dns.RateLimit{PerSecond: asked.PerSecond, Outside: asked.PerSecond, Slip: 2, Exempt: []netip.Prefix{loopback}},
	})
	desired := dns.Desired{
		Zones: []dns.Zone{{Name: zone}}, Default: "default", Node: netip.MustParseAddr(nodeAddr),
		Advertised: []netip.Addr{netip.MustParseAddr("192.0.2.7")},
	}
	for i := range hosts {
		desired.Hosts = append(desired.Hosts, &dns.Host{
			ID: fmt.Sprint(i), Name: fmt.Sprintf("h%d", i), Project: "default",
			Services: []dns.Service{{Name: "ssh", Protocol: "tcp", Port: uint16(20000 + i), Internal: 22}},
		})
	}
	if err := server.Set(desired); err != nil {
		return fmt.Errorf("serve names: %w", err)
	}
	address, err := netip.ParseAddrPort(asked.Address)
	if err != nil {
		return fmt.Errorf("serve names: %w", err)
	}
	listener, err := server.Listen(ctx, address, false)
	if err != nil {
		return err
	}
	return listener.Serve(ctx)
}

// writeZone writes the same zone as a file.
func writeZone(path string) error {
	var text strings.Builder
	fmt.Fprintf(&text, "$ORIGIN %s.\n$TTL 5\n@ 60 IN SOA ns hostmaster 1 3600 600 86400 5\n@ 60 IN NS ns\nns 60 IN A 192.0.2.7\n", zone)
	for i := range hosts {
		fmt.Fprintf(&text, "h%[1]d IN A 192.0.2.7\n*.h%[1]d IN A 192.0.2.7\n_ssh._tcp.h%[1]d IN SRV 0 0 %[2]d h%[1]d\n", i, 20000+i)
	}
	return os.WriteFile(path, []byte(text.String()), 0o600)
}

// writeQuestions writes what is asked: of 20 questions 12 for an address, 3 for
// one of IPv6, which nothing has, 3 for a service and 2 for names that are
// missing.
func writeQuestions(path string) error {
	var text strings.Builder
	for i := range 20 * hosts {
		name := fmt.Sprintf("h%d.%s", i*7919%hosts, zone)
		switch i % 20 {
		case 3, 9, 15:
			fmt.Fprintf(&text, "%s AAAA\n", name)
		case 5, 11, 17:
			fmt.Fprintf(&text, "_ssh._tcp.%s SRV\n", name)
		case 7, 14:
			fmt.Fprintf(&text, "absent%d.%s A\n", i, zone)
		default:
			fmt.Fprintf(&text, "%s A\n", name)
		}
	}
	return os.WriteFile(path, []byte(text.String()), 0o600)
}
