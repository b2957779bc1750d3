package netbench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/test/bench/sandbox"
)

// NodeArg is the first argument with which the program calls itself to do on a
// host what a node does there.
const NodeArg = "netbench-node"

// rangeOf6 holds the addresses of IPv6 that environments have.
const rangeOf6 = "fd88::/48"

// services are the ports that each environment has; those of environment n are
// n behind the first. The ranges are the default ones of these services, as
// wide as two thousand environments need them.
var services = [mappingsOf]struct { //nolint:gochecknoglobals // a constant but for its type
	service  port.Service
	protocol port.Protocol
	first    uint16
	inner    uint16 // is in none of the ranges but that of the first environment, so that a rule tells them apart
}{
	{port.SSH, port.TCP, 22000, 22},
	{port.RDP, port.TCP, 33890, 3389},
	{port.RDP, port.UDP, 33890, 3389},
	{port.Jupyter, port.TCP, 8888, 8888},
	{port.Custom, port.TCP, 12000, 11434},
}

// node is a host with so many environments.
type node struct {
	Environments int
	Mappings     int // five for each of the first environments, the others have none
}

// publishing is how many environments have published ports.
func (n node) publishing() int { return n.Mappings / mappingsOf }

func environmentID(i int) string { return fmt.Sprintf("01JBENCH%018d", i) }

// listedEvery is of how many environments one lets few networks reach its SSH.
const listedEvery = 10

// published is what each environment publishes.
func (n node) published() (all []port.Published, err error) {
	sources, errs := port.ParseSources([]string{
		"192.0.2.0/24", "198.18.7.0/24", sandbox.ClientAddress, "2001:db8:7::/48", clientAddress6,
	}, "sources", true)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	for i := range n.publishing() {
		one := port.Published{EnvID: environmentID(i), Address: target(i)}
		for _, s := range services {
			m := port.Mapping{Service: s.service, Protocol: s.protocol, External: s.first + uint16(i), Internal: s.inner}
			if s.service == port.SSH && i%listedEvery == 1 {
				m.Sources = sources
			}
			one.Mappings = append(one.Mappings, m)
		}
		all = append(all, one)
	}
	return all, nil
}

// policies are what environments may reach: a fifth has the default, a fifth
// each a list of networks, nothing, all with a group, and a list with a group.
// Twenty make a group. None has a limit of speed, which is no matter of rules.
func (n node) policies() (all []policy.Declared, err error) {
	var allow []policy.Destination
	for _, text := range []string{
		"203.0.113.0/24:443/tcp", "192.0.2.0/24", "198.51.100.7:5000-5010", "10.20.30.40:5432/tcp", "[2001:db8:9::/48]:443/tcp", "2001:db8:a::/48",
	} {
		d, err := policy.ParseDestination(text)
		if err != nil {
			return nil, err
		}
		allow = append(allow, d)
	}
	for i := range n.Environments {
		group := []string{fmt.Sprintf("team%d", i/20)}
		one := []policy.Policy{
			{},
			{Egress: policy.AllowList, Allow: allow},
			{Egress: policy.None},
			{Egress: policy.Open, Groups: group},
			{Egress: policy.AllowList, Allow: allow, Groups: group},
		}[i%5]
		all = append(all, policy.Declared{EnvID: environmentID(i), Project: "bench", Address: target(i), Policy: one})
	}
	return all, nil
}

// rules are the policies as the firewall is told them for IPv4, those that
// differ from the default.
func (n node) rules() (all []firewall.Policy, err error) {
	declared, err := n.policies()
	for i := range declared {
		d := &declared[i]
		one := firewall.Policy{EnvID: d.EnvID, Address: d.Address, Egress: d.Policy.Mode()}
		for _, to := range d.Policy.Allow {
			if to.Prefix.Addr().Is4() {
				one.Allow = append(one.Allow, to)
			}
		}
		for _, group := range d.Policy.Groups {
			one.Groups = append(one.Groups, d.Project+"/"+group)
		}
		if !one.IsDefault() {
			all = append(all, one)
		}
	}
	return all, err
}

// mappings are the published ports as the firewall is told them for IPv4.
func (n node) mappings() (all []firewall.Mapping, err error) {
	published, err := n.published()
	for _, p := range published {
		for _, m := range p.Mappings {
			all = append(all, firewall.Mapping{
				EnvID: p.EnvID, Service: m.Service, Protocol: m.Protocol, HostPort: m.External,
				To: netip.AddrPortFrom(p.Address, m.Internal), Sources: slices.DeleteFunc(slices.Clone(m.Sources), func(s netip.Prefix) bool { return s.Addr().Is6() }),
			})
		}
	}
	return all, err
}

// duty is what the process that is the node is asked for.
type duty struct {
	node

	Backend  string
	Attached []int  // environments that have a network
	Dir      string // of the namespaces, and of what the node keeps
}

// namespace is the path of the network namespace of an environment.
func (d *duty) namespace(environment int) string {
	return filepath.Join(d.Dir, "netns", environmentID(environment))
}

// BeNode gives the host whose network namespace the process is in the rules, and
// the environments that are asked for, by the calls that the daemon makes. It is
// a process of its own since some of what they do is done in other threads.
func BeNode(ctx context.Context, arg string) error {
	var asked duty
	if err := json.Unmarshal([]byte(arg), &asked); err != nil {
		return fmt.Errorf("decode what the node is to do: %w", err)
	}
	addresses := netip.MustParsePrefix(rangeOf)
	rules := firewall.Config{
		Subnet: addresses, Subnet6: netip.MustParsePrefix(rangeOf6), Resolver: addresses.Addr().Next(), Path: program(asked.Backend),
	}
	f, err := firewall.New(rules)
	if err != nil {
		return err
	}
	allow, err := policy.ParseDestination("192.168.7.20:5000/tcp")
	if err != nil {
		return err
	}
	networks, err := network.New(network.Config{
		Range: rules.Subnet, Range6: rules.Subnet6, NetNSDir: filepath.Join(asked.Dir, "netns"), Firewall: f,
		ForwardFile: filepath.Join(asked.Dir, "forwarding"), ForwardFile6: filepath.Join(asked.Dir, "forwarding6"),
		Allow: []policy.Destination{allow}, Responder: func() (string, bool) { return "gpu.internal", true },
	})
	if err != nil {
		return err
	}
	if err := networks.EnsureNodeAddress(); err != nil {
		return err
	}
	for _, i := range asked.Attached {
		if err := networks.Attach(ctx, environmentID(i), i); err != nil {
			return err
		}
	}
	published, err := asked.published()
	if err != nil {
		return err
	}
	policies, err := asked.policies()
	if err != nil {
		return err
	}
	if err := networks.Restore(ctx, published, policies); err != nil {
		return err
	}
	if err := f.IPv6(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return networks.Wait(ctx)
}
