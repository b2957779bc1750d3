package network_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/port"
)

// TestAttach: what an environment finds, that attaching again changes nothing,
// and that everything is gone after Detach.
func TestAttach(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	l := newLab(t, "nft")
	const envID = "01JD000000000000000000000A"
	for range 2 { // the second brings in order what is in order
		env := l.attach(t, envID, 3)
		if got := env.Sh(t, "ip -o -4 addr show dev eth0 | awk '{print $4}'"); got != "10.88.0.26/29" {
			t.Errorf("address inside: %q", got)
		}
		if got := env.Sh(t, "ip route | head -1"); got != "default via 10.88.0.25 dev eth0" {
			t.Errorf("route inside: %q", got)
		}
		if got := env.Sh(t, "cat /sys/class/net/lo/operstate; ip -o link show lo | grep -c LOWER_UP"); !strings.HasSuffix(got, "1") {
			t.Errorf("loopback inside: %q", got)
		}
		if got := env.Sh(t, "ip -o link show eth0 | grep -o 'mtu [0-9]*'"); got != "mtu 1400" {
			t.Errorf("MTU inside: %q, want the uplink's", got)
		}
		if got := env.Sh(t, "sysctl -n net.ipv4.ip_unprivileged_port_start net.ipv6.conf.eth0.disable_ipv6 | xargs"); got != "0 1" {
			t.Errorf("settings inside: %q", got)
		}
		if got := testutil.Sh(t, "ip -o link | grep -c 'alias remotegpu:env="+envID+"'"); got != "2" {
			t.Errorf("links that name the environment: %s", got)
		}
		bridge := testutil.Sh(t, "ip -o link show type bridge | sed 's/^[0-9]*: //;s/:.*//'")
		if !strings.HasPrefix(bridge, "rgpu-") || len(bridge) != 13 {
			t.Errorf("bridge %q", bridge)
		}
		if got := testutil.Sh(t, fmt.Sprintf("sysctl -n net.ipv4.conf.%[1]s.route_localnet net.ipv4.conf.%[1]s.rp_filter net.ipv4.conf.uplink.route_localnet net.ipv4.ip_forward | xargs", bridge)); got != "1 2 0 1" {
			t.Errorf("settings of the host: %q", got)
		}
		if attached := present(t, l.networks).Attached; !slices.Equal(attached, []string{envID}) {
			t.Errorf("attached: %v", attached)
		}
	}
	for range 2 { // detaching what is detached is fine
		if err := l.networks.Detach(t.Context(), envID); err != nil {
			t.Fatal(err)
		}
		if attached := present(t, l.networks).Attached; len(attached) > 0 {
			t.Errorf("attached after Detach: %v", attached)
		}
	}
	// The same at once, in another slot: it waits for what is being removed.
	env := l.attach(t, envID, 4)
	if got := env.Sh(t, "ip -o -4 addr show dev eth0 | awk '{print $4}'"); got != "10.88.0.34/29" {
		t.Errorf("address after attaching again: %q", got)
	}
	// Another slot without a Detach in between: the address is replaced.
	env = l.attach(t, envID, 5)
	if got := env.Sh(t, "ip -o -4 addr show dev eth0 | awk '{print $4}'; ip route | head -1") +
		testutil.Sh(t, "ip -o -4 addr | awk '/rgpu-/{print $4}'"); got != "10.88.0.42/29\ndefault via 10.88.0.41 dev eth010.88.0.41/29" {
		t.Errorf("addresses after moving: %q", got)
	}
	// Another environment takes over the slot at once.
	if err := l.networks.Detach(t.Context(), envID); err != nil {
		t.Fatal(err)
	}
	l.attach(t, "01OTHER", 5).Answer(t, "tcp", "0.0.0.0:80", "other")
	if got, err := l.host.Ask(t, "tcp", "10.88.0.42:80", patience); err != nil || !strings.HasPrefix(got, "other") {
		t.Errorf("the new owner of the slot: %q, %v", got, err)
	}
	cleanUp(t, l)
}

// TestPieces: whatever part of a network a crash leaves, Present names it,
// Attach completes it and Detach removes it.
func TestPieces(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	l := newLab(t, "nft")
	const envID = "01PIECES"
	l.attach(t, envID, 0)
	bridge := testutil.Sh(t, "ip -o link show type bridge | sed 's/^[0-9]*: //;s/:.*//'")
	veth := testutil.Sh(t, "ip -o link show master "+bridge+" | sed 's/^[0-9]*: //;s/@.*//'")
	damages := []struct{ name, do string }{
		{"nothing", "true"},
		{"no veth", "ip link del " + veth},
		{"no bridge", "ip link del " + bridge},
		{"no interfaces", "ip link del " + veth + "; ip link del " + bridge},
		{"no address", "ip addr flush dev " + bridge},
		{"down", "ip link set " + bridge + " down; ip link set " + veth + " down"},
		{"off the bridge", "ip link set " + veth + " nomaster"},
		{"setting lost", "sysctl -qw net.ipv4.conf." + bridge + ".route_localnet=0"},
		{"namespace unpinned", "umount -l " + l.networks.NetNS(envID)},
		{"file gone", "umount -l " + l.networks.NetNS(envID) + "; rm " + l.networks.NetNS(envID)},
		// The pair may have gone with the namespace by then.
		{"directory gone", "umount -l " + l.networks.NetNS(envID) + "; umount -l " + filepath.Dir(l.networks.NetNS(envID)) + "; rm -r " + filepath.Dir(l.networks.NetNS(envID))},
		{"only a file", "umount -l " + l.networks.NetNS(envID) + "; ip link del " + veth + " 2>/dev/null || true; ip link del " + bridge},
	}
	for _, damage := range damages {
		t.Run(damage.name, func(t *testing.T) {
			testutil.Sh(t, damage.do)
			found := present(t, l.networks)
			if !slices.Equal(found.Attached, []string{envID}) {
				t.Errorf("attached: %v", found.Attached)
			}
			if unpinned := found.Unpinned; (len(unpinned) > 0) != slices.Contains([]string{"file gone", "directory gone"}, damage.name) {
				t.Errorf("unpinned: %v", unpinned)
			}
			if err := l.networks.Attach(t.Context(), envID, 0); err != nil {
				t.Fatal(err)
			}
			if err := l.networks.Publish(t.Context(), envID, l.networks.Address(0), []port.Mapping{published(port.TCP, 10000, 80)}); err != nil {
				t.Fatal(err)
			}
			env := testutil.OpenNamespace(t, l.networks.NetNS(envID))
			env.Answer(t, "tcp", "0.0.0.0:80", "env")
			if got, err := l.lan.Ask(t, "tcp", hostIP+":10000", patience); err != nil || got != "env "+lanIP {
				t.Errorf("LAN to environment: %q, %v", got, err)
			}
			if got, err := l.host.Ask(t, "tcp", "127.0.0.1:10000", patience); err != nil || !strings.HasPrefix(got, "env") {
				t.Errorf("host to environment: %q, %v", got, err)
			}
			testutil.Sh(t, damage.do)
			if err := l.networks.Detach(t.Context(), envID); err != nil {
				t.Fatal(err)
			}
			if err := l.networks.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if links := testutil.Sh(t, "ip -o link"); strings.Contains(links, "rgpu") {
				t.Errorf("links are left:\n%s", links)
			}
			if _, err := os.Stat(l.networks.NetNS(envID)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("file is left: %v", err)
			}
			if err := l.networks.Attach(t.Context(), envID, 0); err != nil {
				t.Fatal(err)
			}
		})
	}
	// A daemon that starts anew finds all and removes all.
	found := present(t, l.open(t, nil))
	if !slices.Equal(found.Attached, []string{envID}) || len(found.Slots) != 1 || found.Slots[envID] != 0 {
		t.Errorf("another process finds %+v", found)
	}
	l.attach(t, "01OTHER", 9)
	if found := present(t, l.networks); len(found.Slots) != 2 || found.Slots["01OTHER"] != 9 || len(found.Strays) > 0 {
		t.Errorf("with another one: %+v", found)
	}
	// What has lost its name and still has its namespace is no stray.
	testutil.Sh(t, "ip link set "+bridge+" alias ''")
	if strays := present(t, l.networks).Strays; len(strays) > 0 {
		t.Errorf("strays: %v", strays)
	}
	cleanUp(t, l)
}

// TestAttachFails: a failure halfway leaves nothing.
func TestAttachFails(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	l := newLab(t, "nft")
	const envID = "01FAILS"
	// Find the names, then occupy the bridge's with somebody else's link.
	l.attach(t, envID, 0)
	bridge := testutil.Sh(t, "ip -o link show type bridge | sed 's/^[0-9]*: //;s/:.*//'")
	if err := l.networks.Detach(t.Context(), envID); err != nil {
		t.Fatal(err)
	}
	if err := l.networks.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	nothing := func(when string) {
		t.Helper()
		if err := l.networks.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if links := testutil.Sh(t, "ip -o link"); strings.Contains(links, "rgpu") {
			t.Errorf("%s: links are left:\n%s", when, links)
		}
		if entries, err := os.ReadDir(l.dir); err != nil || len(entries) > 0 {
			t.Errorf("%s: files are left: %v, %v", when, entries, err)
		}
	}
	nothing("Detach")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 { // some get as far as a namespace and a bridge
		if err := l.networks.Attach(cancelled, envID, 0); !errors.Is(err, context.Canceled) {
			t.Errorf("Attach that was cancelled: %v", err)
		}
		nothing("cancelled")
	}
	testutil.Sh(t, "ip link add "+bridge+" type bridge; ip link set "+bridge+" alias remotegpu:env=01SOMEBODY")
	err := l.networks.Attach(t.Context(), envID, 0)
	if p := problem.Of(err); err == nil || p.Reason != problem.NetworkFailed || !strings.Contains(err.Error(), "01SOMEBODY") {
		t.Errorf("Attach over somebody's bridge: %v", err)
	}
	if entries, err := os.ReadDir(l.dir); err != nil || len(entries) > 0 {
		t.Errorf("files are left: %v, %v", entries, err)
	}
	testutil.Sh(t, "ip link show "+bridge) // is somebody's, and stays
	if err := l.networks.Attach(t.Context(), envID, l.networks.Slots()); problem.Of(err).Reason != problem.AddressPoolExhausted {
		t.Errorf("slot outside the range: %v", err)
	}
	for _, bad := range []string{"", "../x", "a/b", ".hidden", "a b"} {
		if err := l.networks.Attach(t.Context(), bad, 0); err == nil {
			t.Errorf("id %q is accepted", bad)
		}
	}
	cleanUp(t, l)
}

// TestRestore: a new daemon declares what should be published; what is not in
// the list is withdrawn, what was flushed comes back.
func TestRestore(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			l := newLab(t, backend)
			var all []port.Published
			for i := range 3 {
				envID := fmt.Sprint("01ENV", i)
				l.attach(t, envID, i).Answer(t, "tcp", "0.0.0.0:80", envID)
				mappings := []port.Mapping{published(port.TCP, uint16(10000+i), 80)}
				if err := l.networks.Publish(t.Context(), envID, l.networks.Address(i), mappings); err != nil {
					t.Fatal(err)
				}
				all = append(all, port.Published{EnvID: envID, Address: l.networks.Address(i), Mappings: mappings})
			}
			answers := func(want ...bool) {
				t.Helper()
				for i, open := range want {
					if _, err := l.lan.Ask(t, "tcp", fmt.Sprintf("%s:%d", hostIP, 10000+i), patience); (err == nil) != open {
						t.Errorf("port %d: %v, want it open: %v", 10000+i, err, open)
					}
				}
			}
			answers(true, true, true)
			fresh := l.open(t, nil)
			if err := fresh.Restore(t.Context(), all[:2], nil); err != nil {
				t.Fatal(err)
			}
			answers(true, true, false)
			testutil.Sh(t, l.iptables+" -t nat -F; "+l.iptables+" -D FORWARD 1; sysctl -qw net.ipv4.ip_forward=0")
			if err := fresh.Restore(t.Context(), all, nil); err != nil {
				t.Fatal(err)
			}
			answers(true, true, true)
			// Drift names what a Restore would change, and changes nothing.
			drift := func(n *network.Networks, want ...string) {
				t.Helper()
				found, err := n.Drift(t.Context(), all[:2], nil)
				var got []string
				for _, d := range found {
					if d.EnvID != "" {
						got = append(got, d.EnvID+" "+d.Name+" "+d.Message)
					}
				}
				if err != nil || !slices.Equal(got, want) || len(want) > 0 && len(found) == len(got) {
					t.Errorf("drift %v, %v, want %q and the chains that differ", found, err, want)
				}
			}
			drift(l.open(t, nil), "01ENV2 tcp 10002 to 10.88.0.18:80 the port is published and should not be")
			answers(true, true, true)
			if err := fresh.Restore(t.Context(), all[:2], nil); err != nil {
				t.Fatal(err)
			}
			drift(fresh)
			testutil.Sh(t, l.iptables+" -t nat -F")
			drift(fresh, "01ENV0 tcp 10000 to 10.88.0.2:80 the port should be published and is not",
				"01ENV1 tcp 10001 to 10.88.0.10:80 the port should be published and is not")
			if err := fresh.Restore(t.Context(), all, nil); err != nil {
				t.Fatal(err)
			}
			// A process that changes one environment before it knows the others
			// leaves those alone.
			early := l.open(t, nil)
			if err := early.Publish(t.Context(), "01ENV1", all[1].Address, nil); err != nil {
				t.Fatal(err)
			}
			answers(true, false, true)
			// Within the grace a Publish outweighs a list that may be older.
			careful := l.open(t, func(cfg *network.Config) { cfg.RestoreGrace = time.Hour })
			if err := careful.Restore(t.Context(), all[:1], nil); err != nil {
				t.Fatal(err)
			}
			if err := careful.Publish(t.Context(), "01ENV1", all[1].Address, all[1].Mappings); err != nil {
				t.Fatal(err)
			}
			if err := careful.Publish(t.Context(), "01ENV0", all[0].Address, nil); err != nil {
				t.Fatal(err)
			}
			if err := careful.Restore(t.Context(), all[:1], nil); err != nil {
				t.Fatal(err)
			}
			answers(false, true, false)
			if drift, err := careful.Drift(t.Context(), all[:1], nil); err != nil || len(drift) > 0 {
				t.Errorf("drift within the grace: %v, %v", drift, err)
			}
			cleanUp(t, l)
		})
	}
}

// recorder is a firewall that counts and can be told to fail or to block.
type recorder struct {
	mu      sync.Mutex
	applied []firewall.Desired
	fail    error
	block   chan struct{}
	mends   []string             // by Restore
	changes chan firewall.Change // for Watch
}

func (r *recorder) Set(_ context.Context, desired firewall.Desired) error {
	r.mu.Lock()
	block := r.block
	r.mu.Unlock()
	if block != nil {
		<-block
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.applied = append(r.applied, desired)
	return r.fail
}

func (r *recorder) Restore(ctx context.Context, desired firewall.Desired) ([]string, error) {
	return r.mends, r.Set(ctx, desired)
}

func (r *recorder) Published(context.Context) (firewall.Desired, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.applied) == 0 {
		return firewall.Desired{}, nil
	}
	return r.applied[len(r.applied)-1], nil
}

func (r *recorder) Check(ctx context.Context, _ firewall.Desired) (firewall.Desired, []string, error) {
	there, err := r.Published(ctx)
	return there, nil, err
}

func (r *recorder) CleanUp(context.Context, firewall.Kept) error { return nil }

func (r *recorder) IPv6() error { return nil }

func (r *recorder) Differences(context.Context, firewall.Desired) ([]firewall.Difference, error) {
	return nil, nil
}

func (r *recorder) Render(firewall.Desired) (string, error) { return "", nil }

func (r *recorder) Watches(context.Context) (string, error) { return "events", nil }

func (r *recorder) Conflicts(context.Context, bool) ([]*problem.Problem, error) { return nil, nil }

func (r *recorder) Watch(ctx context.Context, _ time.Duration, changed func(context.Context, firewall.Change)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case change := <-r.changes:
			changed(ctx, change)
		}
	}
}

// set has the following calls fail, nil: not any more.
func (r *recorder) set(fail error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = fail
}

func (r *recorder) last() (ports []uint16) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.applied[len(r.applied)-1].Mappings {
		ports = append(ports, m.HostPort)
	}
	slices.Sort(ports)
	return ports
}

// TestPublishTogether: calls that arrive while rules are applied are applied
// together, and each waits for its own.
func TestPublishTogether(t *testing.T) {
	rules := &recorder{block: make(chan struct{})}
	networks, err := network.New(network.Config{Range: subnet, Firewall: rules})
	if err != nil {
		t.Fatal(err)
	}
	const callers = 20
	results := make(chan error, callers)
	for i := range callers {
		go func() {
			results <- networks.Publish(t.Context(), fmt.Sprint("01ENV", i), networks.Address(i),
				[]port.Mapping{published(port.TCP, uint16(10000+i), 80)})
		}()
	}
	select {
	case err := <-results:
		t.Fatalf("a call returned before its rules were applied: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	close(rules.block)
	for range callers {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if got := len(rules.last()); got != callers {
		t.Errorf("%d of %d mappings are applied", got, callers)
	}
	if got := len(rules.applied); got > callers/2 {
		t.Errorf("%d applications for %d calls that came together", got, callers)
	}
}

// TestPublishFails: what could not be published is not tried again by others;
// what could not be withdrawn stays withdrawn, also beside other ports.
func TestPublishFails(t *testing.T) {
	rules := &recorder{}
	networks, err := network.New(network.Config{Range: subnet, Firewall: rules})
	if err != nil {
		t.Fatal(err)
	}
	publish := func(envID string, external ...uint16) error {
		var mappings []port.Mapping
		for _, p := range external {
			mappings = append(mappings, published(port.TCP, p, 80))
		}
		return networks.Publish(t.Context(), envID, networks.Address(0), mappings)
	}
	if err := errors.Join(publish("01A", 1000), publish("01B", 2000)); err != nil {
		t.Fatal(err)
	}
	rules.fail = errors.New("broken")
	if publish("01A", 1001) == nil || publish("01B") == nil || publish("01C", 3000) == nil {
		t.Fatal("a failure is not reported")
	}
	rules.fail = nil
	before := len(rules.applied)
	if err := publish("01B"); err != nil || len(rules.applied) == before {
		t.Errorf("withdrawing again after a failure: %v, %d applications", err, len(rules.applied)-before)
	}
	if err := publish("01D", 4000); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]uint16{4000}, rules.last()); diff != "" {
		t.Errorf("published in the end (-want +got):\n%s", diff)
	}
}

// TestDetachWaitsForWithdrawal: an address is free for others only when no
// rule leads to it, also when the one who withdrew them did not wait.
func TestDetachWaitsForWithdrawal(t *testing.T) {
	rules := &recorder{}
	networks, err := network.New(network.Config{Range: subnet, Firewall: rules, NetNSDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	const envID = "01WITHDRAWN"
	if err := networks.Publish(t.Context(), envID, networks.Address(0), []port.Mapping{published(port.TCP, 1000, 80)}); err != nil {
		t.Fatal(err)
	}
	rules.mu.Lock()
	rules.block = make(chan struct{})
	rules.mu.Unlock()
	gone, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := networks.Publish(gone, envID, networks.Address(0), nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Publish() = %v while the firewall hangs", err)
	}
	detached := make(chan error, 1)
	go func() { detached <- networks.Detach(t.Context(), envID) }()
	select {
	case err := <-detached:
		t.Errorf("Detach() = %v while the port is still published", err)
		detached <- err
	case <-time.After(300 * time.Millisecond):
	}
	close(rules.block)
	if err := <-detached; err != nil {
		t.Error(err)
	}
	if err := networks.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if got := rules.last(); len(got) != 0 {
		t.Errorf("published in the end: %v", got)
	}
}

// TestCleanUpKeepsForeignInterfaces: an interface is ours by more than the
// beginning of its name.
func TestCleanUpKeepsForeignInterfaces(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	l := newLab(t, "nft")
	// The last two are what a crash leaves between making and naming.
	testutil.Sh(t, `ip link add rgpu-lan0 type veth peer name rgpu-abcdefgh &&
		ip link add rgpu-lan1 type bridge && ip link add rgpu-hgfedcba type bridge && ip link set rgpu-hgfedcba alias backbone &&
		ip link add rgpu-aaaaaaaa type bridge && ip link add rgpuv-aaaaaaaa type veth peer name left`)
	if strays := present(t, l.networks).Strays; !slices.Equal(strays, []string{"rgpu-aaaaaaaa", "rgpuv-aaaaaaaa"}) {
		t.Errorf("strays: %v", strays)
	}
	for _, name := range []string{"rgpu-aaaaaaaa", "rgpu-hgfedcba", "rgpu-lan1", "lo"} { // only the first is one
		if err := l.networks.RemoveStray(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	if links := testutil.Sh(t, "ip -o link"); strings.Contains(links, "rgpu-aaaaaaaa") || !strings.Contains(links, "rgpu-hgfedcba") || !strings.Contains(links, "rgpu-lan1") {
		t.Errorf("removed the wrong ones:\n%s", links)
	}
	if err := l.open(t, nil).CleanUp(t.Context()); err != nil {
		t.Error(err)
	}
	if got := testutil.Sh(t, "ip -o link | grep -o 'rgpu[a-z0-9-]*' | sort -u | xargs"); got != "rgpu-abcdefgh rgpu-hgfedcba rgpu-lan0 rgpu-lan1" {
		t.Errorf("left are %q", got)
	}
	testutil.Sh(t, "for i in rgpu-lan0 rgpu-lan1 rgpu-hgfedcba; do ip link del $i; done")
	l.clean(t)
}

func TestAddresses(t *testing.T) {
	networks, err := network.New(network.Config{Range: subnet, Firewall: &recorder{}})
	if err != nil {
		t.Fatal(err)
	}
	if got := networks.Slots(); got != 8192 {
		t.Errorf("Slots: %d", got)
	}
	seen := map[netip.Addr]bool{}
	for slot := range networks.Slots() {
		address := networks.Address(slot)
		if seen[address] || !subnet.Contains(address) {
			t.Fatalf("slot %d: %s", slot, address)
		}
		seen[address] = true
	}
	if first, last := networks.Address(0), networks.Address(8191); first.String() != "10.88.0.2" || last.String() != "10.88.255.250" {
		t.Errorf("first %s, last %s", first, last)
	}
	for name, cfg := range map[string]network.Config{
		"no range":    {Firewall: &recorder{}},
		"too small":   {Range: netip.MustParsePrefix("10.88.0.0/30"), Firewall: &recorder{}},
		"host bits":   {Range: netip.MustParsePrefix("10.88.0.1/16"), Firewall: &recorder{}},
		"IPv6":        {Range: netip.MustParsePrefix("fd00::/64"), Firewall: &recorder{}},
		"MTU":         {Range: subnet, MTU: 100, Firewall: &recorder{}},
		"no firewall": {Range: subnet},
	} {
		if _, err := network.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestResolvers(t *testing.T) {
	addresses := func(all ...string) (parsed []netip.Addr) {
		for _, one := range all {
			parsed = append(parsed, netip.MustParseAddr(one))
		}
		return parsed
	}
	for _, c := range []struct {
		name, host, resolved string
		upstreams            []netip.Addr
		servers              []netip.Addr
		search               []string
		configured           []string // search domains
	}{
		{"no search domains of its own, as the default file says it", "search lan\nnameserver 198.18.77.1\n", "", nil, addresses("198.18.77.1"), []string{"lan"}, []string{}},
		{"search domains of its own", "search lan\nnameserver 198.18.77.1\n", "", nil, addresses("198.18.77.1"), []string{"corp"}, []string{"corp"}},
		{"plain", "# comment\nsearch a.example b.example .\nnameserver 198.18.77.1\nnameserver 198.18.77.2\noptions ndots:2\n", "", nil, addresses("198.18.77.1", "198.18.77.2"), []string{"a.example", "b.example"}, nil},
		{"stub", "nameserver 127.0.0.53\nsearch lan\n", "nameserver 198.18.77.9\nsearch corp\n", nil, addresses("198.18.77.9"), []string{"corp"}, nil},
		{"loopback among others", "nameserver 127.0.0.1\nnameserver 198.18.77.1\n", "nameserver 198.18.77.9\n", nil, addresses("198.18.77.1"), nil, nil},
		{"configured", "nameserver ::1\nsearch lan\n", "", addresses("198.51.100.1"), addresses("198.51.100.1"), []string{"lan"}, nil},
		{"unreachable from inside", "nameserver 169.254.169.254\nnameserver fe80::1%eth0\nnameserver 2001:db8::1\nnameserver what\n", "", nil, nil, nil, nil},
		{"more than are read", "nameserver 198.18.77.1\nnameserver 198.18.77.2\nnameserver 198.18.77.3\nnameserver 198.18.77.4\n", "", nil, addresses("198.18.77.1", "198.18.77.2", "198.18.77.3"), nil, nil},
		{"empty", "", "", nil, nil, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			cfg := network.Config{
				Range: subnet, Firewall: &recorder{}, Upstreams: c.upstreams, Search: c.configured,
				ResolvConf: filepath.Join(dir, "resolv.conf"), ResolvedConf: filepath.Join(dir, "resolved.conf"),
			}
			if err := os.WriteFile(cfg.ResolvConf, []byte(c.host), 0o644); err != nil {
				t.Fatal(err)
			}
			if c.resolved != "" {
				if err := os.WriteFile(cfg.ResolvedConf, []byte(c.resolved), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			networks, err := network.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			servers, search, err := networks.Resolvers()
			if c.servers == nil {
				if p := problem.Of(err); err == nil || p.Reason != problem.NoUpstreamDNS || p.Hint == "" {
					t.Fatalf("want NO_UPSTREAM_DNS with a hint: %v", err)
				}
				return
			}
			if err != nil || !slices.Equal(servers, c.servers) || !slices.Equal(search, c.search) {
				t.Errorf("got %v %v %v, want %v %v", servers, search, err, c.servers, c.search)
			}
		})
	}
}

func TestPickRange(t *testing.T) {
	testutil.Require(t, testutil.Root)
	if !testutil.Isolated(t) {
		return
	}
	pick := func(want string) {
		t.Helper()
		if got, err := network.PickRange(t.Context()); err != nil || got.String() != want {
			t.Errorf("picked %s, %v, want %s", got, err, want)
		}
	}
	pick("10.88.0.0/16")
	testutil.Sh(t, "ip link add near type veth peer name far; ip addr add 192.0.2.1/24 dev near; ip link set near up; ip link set far up; ip route add default via 192.0.2.2")
	pick("10.88.0.0/16")
	testutil.Sh(t, "ip link add rgpu-x type bridge; ip addr add 10.88.0.1/29 dev rgpu-x; ip link set rgpu-x up")
	testutil.Sh(t, "ip route add unreachable 10.88.0.0/16 proto 171 metric 4294967294")
	pick("10.88.0.0/16") // our own do not count
	testutil.Sh(t, "ip route add 10.88.7.0/24 via 192.0.2.3")
	pick("10.89.0.0/16")
	testutil.Sh(t, "ip addr add 10.89.3.4/32 dev near; ip route add 10.90.0.0/15 via 192.0.2.3 table 77")
	pick("10.92.0.0/16")
	testutil.Sh(t, "ip route add 10.0.0.0/8 via 192.0.2.3")
	pick("172.20.0.0/16")
	testutil.Sh(t, "ip route add 172.16.0.0/12 via 192.0.2.3; ip route add 192.168.0.0/16 via 192.0.2.3")
	if _, err := network.PickRange(t.Context()); problem.Of(err).Reason != problem.AddressPoolExhausted {
		t.Errorf("everything is taken: %v", err)
	}
}

// present is what the host has of networks, by one who must be able to tell.
func present(t *testing.T, networks *network.Networks) *port.Present {
	t.Helper()
	found, err := networks.Present(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return found
}
