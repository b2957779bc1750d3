// Package netbench measures what rules cost: to change them, and packets that
// pass them. It is called in the benchmark's sandbox.
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
	Mappings     int // published ports that there are, at most 10000
	Environments int // of Packets, at least one for five mappings
	Rounds       int // of each row
	Connects     int // of a round of packets, and while rules are rewritten (at least ten times as many)

	Peers  []string       // columns of Packets that are other programs
	Config columns.Config // for these, and where a node keeps its files
}

const (
	firstPort  = 10000
	mappingsOf = 5 // of an environment
	rangeOf    = "10.88.0.0/16"
	innerPort  = 22 // of services
)

// Columns are the columns of a suite but for other programs, nil when it is none
// of these.
func Columns(suite report.SuiteName) []string {
	switch suite { //nolint:exhaustive // the others are of containers
	case report.Firewall:
		return []string{columns.RemoteGPU, report.ByHand, report.Unique, report.Append}
	case report.Packets:
		return []string{columns.RemoteGPU, report.OursLegacy, report.Map, report.OneRule, report.OneLegacy, report.Flat}
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

// program6 is the ip6tables of a backend.
func program6(backend string) string { return "/usr/sbin/ip6tables-" + backend }

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
		EnvID: environmentID(environment), Service: port.Custom, Protocol: port.TCP, HostPort: uint16(firstPort + i),
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
		"-p", string(m.Protocol), "-m", string(m.Protocol), "--dport", fmt.Sprint(m.HostPort), "-m", "comment", "--comment", "rgpu:env=" + m.EnvID + ":" + string(m.Service),
		"-j", "DNAT", "--to-destination", m.To.String(),
	}
}

// run runs a program in the calling thread's namespace.
func run(ctx context.Context, stdin, name string, args ...string) error {
	_, err := output(ctx, stdin, name, args...)
	return err
}

// output does as run and returns what the program prints.
func output(ctx context.Context, stdin, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, said strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return out.String(), nil
}

// restore applies a file of iptables-restore.
func restore(ctx context.Context, backend, file string) error {
	return run(ctx, file, program(backend)+"-restore", "--noflush")
}

// script runs a shell script.
func script(ctx context.Context, text string) error { return run(ctx, text, "sh", "-e") }
