package columns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/remotegpu/remotegpu/test/bench/sandbox"
)

// plainNetwork is the network of the lower bound: a bridge (unless all share
// one), a veth pair and a namespace per container through netlink, and two rules per published port in
// one iptables-restore.
type plainNetwork struct {
	host    *sandbox.NetNS
	handle  *netlink.Handle
	restore string // path of iptables-restore
	env     []string
	dir     string
	common  *netlink.Bridge // nil: each container has its own
}

// plainEndpoint is what one container has of it.
type plainEndpoint struct {
	netns   string
	veth    string
	bridge  string // its own, "" without one
	address net.IP
	rules   []string // its rules as "-A …", by table: nat, filter
}

// newPlainNetwork makes what is there once per host.
func newPlainNetwork(ctx context.Context, config *Config, host *sandbox.NetNS, dir string, shared bool) (*plainNetwork, error) {
	handle, err := netlink.NewHandleAt(handleOf(host))
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	n := &plainNetwork{
		host: host, handle: handle, dir: dir,
		restore: config.program("iptables-restore"), env: config.environ(),
	}
	err = n.apply(ctx, lines(
		"*nat",
		":BENCH-DNAT -",
		"-A PREROUTING -m addrtype --dst-type LOCAL -j BENCH-DNAT",
		"-A OUTPUT -m addrtype --dst-type LOCAL -j BENCH-DNAT",
		"-A POSTROUTING -s 10.99.0.0/16 ! -d 10.99.0.0/16 -j MASQUERADE",
		"COMMIT",
		"*filter",
		":FORWARD DROP",
		":BENCH-FORWARD -",
		"-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		"-A FORWARD -s 10.99.0.0/16 -o uplink -j ACCEPT",
		"-A FORWARD -j BENCH-FORWARD",
		"COMMIT",
	))
	if err == nil && shared {
		n.common, err = n.addBridge("bench", net.IPv4(10, 99, 255, 254), 16)
	}
	if err != nil {
		handle.Close()
		return nil, err
	}
	return n, nil
}

func (n *plainNetwork) close() {
	if n != nil {
		n.handle.Close()
	}
}

// attach makes the network of a container; serial picks its subnet.
func (n *plainNetwork) attach(serial int) (_ *plainEndpoint, err error) {
	subnet := byte(serial % 250)
	e := &plainEndpoint{
		netns:   filepath.Join(n.dir, fmt.Sprintf("netns-%d", serial)),
		veth:    fmt.Sprintf("veth%d", serial),
		address: net.IPv4(10, 99, subnet, 2),
	}
	ns, err := sandbox.PinNetNS(e.netns)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	defer func() {
		if err != nil {
			err = errors.Join(err, n.detach(e))
		}
	}()
	bridge, gateway, prefix := n.common, net.IPv4(10, 99, 255, 254), 16
	if bridge == nil {
		gateway, prefix = net.IPv4(10, 99, subnet, 1), 24
		e.bridge = fmt.Sprintf("bench%d", serial)
		if bridge, err = n.addBridge(e.bridge, gateway, prefix); err != nil {
			return nil, err
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = e.veth
	attrs.MasterIndex = bridge.Index
	attrs.Flags = net.FlagUp
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.FD())}
	if err := n.handle.LinkAdd(pair); err != nil {
		return nil, fmt.Errorf("add veth pair: %w", err)
	}
	if err := inside(ns, e.address, gateway, prefix); err != nil {
		return nil, err
	}
	return e, nil
}

// addBridge makes a bridge with an address.
func (n *plainNetwork) addBridge(name string, address net.IP, prefix int) (*netlink.Bridge, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := n.handle.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("add bridge: %w", err)
	}
	if err := n.handle.AddrAdd(bridge, addrOf(address, prefix)); err != nil {
		return nil, fmt.Errorf("give bridge its address: %w", err)
	}
	if err := n.handle.LinkSetUp(bridge); err != nil {
		return nil, fmt.Errorf("set bridge up: %w", err)
	}
	return bridge, nil
}

// inside sets up the container's end.
func inside(ns *sandbox.NetNS, address, gateway net.IP, prefix int) error {
	handle, err := netlink.NewHandleAt(handleOf(ns))
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer handle.Close()
	for _, name := range []string{"lo", "eth0"} {
		link, err := handle.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		if name == "eth0" {
			if err := handle.AddrAdd(link, addrOf(address, prefix)); err != nil {
				return fmt.Errorf("give %s its address: %w", name, err)
			}
		}
		if err := handle.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
	}
	if err := handle.RouteAdd(&netlink.Route{Gw: gateway}); err != nil {
		return fmt.Errorf("add default route: %w", err)
	}
	return nil
}

// publish makes a port of the host lead to the container.
func (n *plainNetwork) publish(ctx context.Context, e *plainEndpoint, port int) error {
	to := e.address.String()
	inner := strconv.Itoa(ContainerPort)
	e.rules = []string{
		"-A BENCH-DNAT -p tcp --dport " + strconv.Itoa(port) + " -j DNAT --to-destination " + to + ":" + inner,
		"-A BENCH-FORWARD -d " + to + "/32 -p tcp --dport " + inner + " -j ACCEPT",
	}
	if err := n.apply(ctx, ruleFile(e.rules)); err != nil {
		e.rules = nil // each table is a transaction: what went in goes with the sandbox
		return err
	}
	return nil
}

// withdraw undoes publish.
func (n *plainNetwork) withdraw(ctx context.Context, e *plainEndpoint) error {
	if e.rules == nil {
		return nil
	}
	var removals []string
	for _, rule := range e.rules {
		removals = append(removals, strings.Replace(rule, "-A ", "-D ", 1))
	}
	return n.apply(ctx, ruleFile(removals))
}

func ruleFile(rules []string) string {
	return lines("*nat", rules[0], "COMMIT", "*filter", rules[1], "COMMIT")
}

// detach undoes attach. The veth pair goes with the namespace, which is let go
// of last: the kernel takes it apart in the background, under the lock that
// the deletion of the bridge needs.
func (n *plainNetwork) detach(e *plainEndpoint) error {
	var failures []error
	if e.bridge != "" {
		link, err := n.handle.LinkByName(e.bridge)
		if err == nil {
			err = n.handle.LinkDel(link)
		}
		if absent := (netlink.LinkNotFoundError{}); err != nil && !errors.As(err, &absent) {
			failures = append(failures, fmt.Errorf("delete bridge: %w", err))
		}
	}
	failures = append(failures, sandbox.UnpinNetNS(e.netns))
	return errors.Join(failures...)
}

// apply runs iptables-restore on the host.
func (n *plainNetwork) apply(ctx context.Context, rules string) error {
	var said strings.Builder
	cmd := exec.CommandContext(ctx, n.restore, "--noflush", "--wait")
	cmd.Env, cmd.Stdin, cmd.Stderr = n.env, strings.NewReader(rules), &said
	// Started from a thread in the namespace, awaited from anywhere.
	if err := n.host.Do(cmd.Start); err != nil {
		return fmt.Errorf("start iptables-restore: %w", err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("iptables-restore: %w: %s", err, strings.TrimSpace(said.String()))
	}
	return nil
}

func addrOf(ip net.IP, prefix int) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(prefix, 32)}}
}
