// Package netbench measures what rules cost: to change them, and packets that
// pass them. It runs no container; it is called in the benchmark's sandbox.
package netbench

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"

	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/test/bench/columns"
	"github.com/remotegpu/remotegpu/test/bench/report"
)

// Options are how to measure.
type Options struct {
	Mappings int // published ports that there are, at most 10000
	Rounds   int // of each row
	Connects int // of a round of packets, and while rules are rewritten (ten times as many)
}

const (
	firstPort  = 10000
	mappingsOf = 5 // of an environment
	rangeOf    = "10.88.0.0/16"
	innerPort  = 8080
)

// Columns are the columns of a suite, nil when it is none of these.
func Columns(suite report.SuiteName) []string {
	switch suite { //nolint:exhaustive // the others are of containers
	case report.Firewall:
		return []string{columns.RemoteGPU, report.ByHand, report.Unique, report.Append}
	case report.Packets:
		return []string{columns.RemoteGPU, report.OursLegacy, report.Map, report.Flat, report.OneRule, report.OneLegacy}
	}
	return nil
}

// Missing says what the machine lacks; "" when nothing.
func Missing() string {
	for _, program := range []string{"iptables-nft-restore", "iptables-legacy-restore", "nft", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			return program + " is not installed (Debian packages iptables, nftables, iproute2)"
		}
	}
	return ""
}

// Run measures a suite and fills in results, which has an entry for each
// column.
func Run(ctx context.Context, suite report.SuiteName, options Options, results map[string]*report.Column, say func(string)) error {
	switch suite { //nolint:exhaustive // the others are of containers
	case report.Firewall:
		return measureRules(ctx, options, results, say)
	case report.Packets:
		return measurePackets(ctx, options, results, say)
	}
	return fmt.Errorf("no suite %q of rules", suite)
}

// program is the iptables of a backend.
func program(backend string) string { return "/usr/sbin/iptables-" + backend }

// newFirewall is the node's firewall on a backend.
func newFirewall(backend string) (*firewall.Firewall, error) {
	return firewall.New(firewall.Config{Subnet: netip.MustParsePrefix(rangeOf), Path: program(backend)})
}

// target is the address of an environment.
func target(environment int) netip.Addr {
	base := netip.MustParsePrefix(rangeOf).Addr().As4()
	offset := environment*8 + 2
	return netip.AddrFrom4([4]byte{base[0], base[1], byte(offset >> 8), byte(offset)})
}

// mappings are n published ports of environments with five each.
func mappings(n int) []firewall.Mapping {
	all := make([]firewall.Mapping, 0, n)
	for i := range n {
		all = append(all, mapping(i))
	}
	return all
}

func mapping(i int) firewall.Mapping {
	environment := i / mappingsOf
	return firewall.Mapping{
		EnvID: fmt.Sprintf("01JBENCH%018d", environment), Service: port.Custom, Protocol: port.TCP, HostPort: uint16(firstPort + i),
		To: netip.AddrPortFrom(target(environment), innerPort),
	}
}

// flatRules are the same ports as rules of one chain.
func flatRules(chain string, all []firewall.Mapping) string {
	var b strings.Builder
	for _, m := range all {
		fmt.Fprintf(&b, "-A %s %s\n", chain, strings.Join(flatRule(m), " "))
	}
	return b.String()
}

func flatRule(m firewall.Mapping) []string {
	return []string{
		"-p", "tcp", "-m", "tcp", "--dport", fmt.Sprint(m.HostPort), "-m", "comment", "--comment", "rgpu:env=" + m.EnvID + ":" + string(m.Service),
		"-j", "DNAT", "--to-destination", m.To.String(),
	}
}

// run runs a program in the calling thread's namespace.
func run(ctx context.Context, stdin, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(said)))
	}
	return nil
}

// restore applies a file of iptables-restore.
func restore(ctx context.Context, backend, file string) error {
	return run(ctx, file, program(backend)+"-restore", "--noflush")
}

// script runs a shell script.
func script(ctx context.Context, text string) error { return run(ctx, text, "sh", "-e") }
