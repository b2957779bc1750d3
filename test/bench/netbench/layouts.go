package netbench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/test/bench/report"
	"github.com/remotegpu/remotegpu/test/bench/sandbox"
)

// layouts are how the same ports are published without a node, by column.
var layouts = []struct { //nolint:gochecknoglobals // a constant but for its type
	name  string
	apply func(ctx context.Context, all []firewall.Mapping) error
}{
	{report.Map, publishMap},
	{report.Flat, func(ctx context.Context, all []firewall.Mapping) error {
		return restore(ctx, "nft", "*nat\n:BENCH - [0:0]\n-A PREROUTING -m addrtype --dst-type LOCAL -j BENCH\n"+flatRules("BENCH", all)+"COMMIT\n")
	}},
	{report.OneRule, func(ctx context.Context, all []firewall.Mapping) error { return publishOne(ctx, "nft", all) }},
	{report.OneLegacy, func(ctx context.Context, all []firewall.Mapping) error { return publishOne(ctx, "legacy", all) }},
}

// publishOne publishes the last of the ports, by both address families.
func publishOne(ctx context.Context, backend string, all []firewall.Mapping) error {
	last := all[len(all)-1]
	rule := strings.Join(flatRule(last), " ")
	rule6 := strings.Replace(rule, last.To.String(), fmt.Sprintf("[%s]:%d", twin(last.To.Addr()), last.To.Port()), 1)
	return errors.Join(
		restore(ctx, backend, "*nat\n-A PREROUTING "+rule+"\nCOMMIT\n"),
		run(ctx, "*nat\n-A PREROUTING "+rule6+"\nCOMMIT\n", program6(backend)+"-restore", "--noflush"),
	)
}

// publishMap publishes them by one map for each protocol and address family.
func publishMap(ctx context.Context, all []firewall.Mapping) error {
	var b strings.Builder
	for _, family := range []string{"ip", "ip6"} {
		kind, local := "ipv4_addr", "fib daddr type local"
		if family == "ip6" {
			kind = "ipv6_addr"
		}
		fmt.Fprintf(&b, "table %s bench {\n", family)
		for _, protocol := range []port.Protocol{port.TCP, port.UDP} {
			fmt.Fprintf(&b, " map ports_%s { type inet_service : %s . inet_service; elements = {\n", protocol, kind)
			for _, m := range all {
				to := m.To.Addr()
				if family == "ip6" {
					to = twin(to)
				}
				if m.Protocol == protocol {
					fmt.Fprintf(&b, "%d : %s . %d,\n", m.HostPort, to, m.To.Port())
				}
			}
			b.WriteString("} }\n")
		}
		b.WriteString(" chain pre { type nat hook prerouting priority dstnat;\n")
		for _, protocol := range []port.Protocol{port.TCP, port.UDP} {
			fmt.Fprintf(&b, "  %s dnat %s to %s dport map @ports_%s\n", local, family, protocol, protocol)
		}
		b.WriteString(" }\n}\n")
	}
	return run(ctx, b.String(), "nft", "-f", "-")
}

// newNode makes a host on which a node has done its work.
func newNode(ctx context.Context, name, backend, dir string, n node, attached []int) (_ *path, err error) {
	p := &path{name: name}
	asked := duty{node: n, Backend: backend, Attached: attached, Dir: filepath.Join(dir, "node-"+backend)}
	var spaces []*sandbox.NetNS
	p.close = func() {
		p.hush()
		for _, ns := range spaces {
			ns.Close()
		}
		for _, environment := range attached {
			_ = sandbox.UnpinNetNS(asked.namespace(environment)) // the sandbox ends in a moment
		}
		if p.host != nil {
			p.host.Close()
		}
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.host, err = newHost(ctx); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(asked.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of the node: %w", err)
	}
	arg, err := json.Marshal(asked)
	if err != nil {
		return nil, fmt.Errorf("encode what the node is to do: %w", err)
	}
	var said strings.Builder
	cmd := exec.CommandContext(ctx, "/proc/self/exe", NodeArg, string(arg))
	cmd.Stdout, cmd.Stderr = &said, &said
	err = p.host.NS.Do(func() error {
		// As most hosts do before they have a node, it forwards nothing.
		return errors.Join(script(ctx, "echo 0 >/proc/sys/net/ipv4/ip_forward"), cmd.Start())
	})
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return nil, fmt.Errorf("be a node: %w: %s", err, strings.TrimSpace(said.String()))
	}
	for _, environment := range attached {
		ns, err := sandbox.OpenNetNS(asked.namespace(environment))
		if err != nil {
			return nil, err
		}
		spaces = append(spaces, ns)
	}
	return p, p.listenAll(spaces)
}
