package firewall_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
)

// ula is a range of unique local addresses, routed one that is the world's.
var (
	ula    = netip.MustParsePrefix("fd88::/48")
	routed = netip.MustParsePrefix("2001:db8:0:1::/64")
)

func newFirewall6(t *testing.T, path string, subnet netip.Prefix) *firewall.Firewall {
	t.Helper()
	f, err := firewall.New(firewall.Config{Subnet: netip.MustParsePrefix("10.88.0.0/16"), Subnet6: subnet, Path: path})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// same6 compares what is rendered with the rules of both families.
func same6(t *testing.T, f *firewall.Firewall, h *host) {
	t.Helper()
	kernel := saved(t, h, false) + "# IPv6\n" + saved(t, h, true)
	if diff := cmp.Diff(text(t, f), kernel); diff != "" {
		t.Fatalf("the kernel differs from what was rendered (-rendered +kernel):\n%s", diff)
	}
	if diff, err := f.Diff(t.Context()); err != nil || diff != "" {
		t.Fatalf("Diff: %v\n%s", err, diff)
	}
}

// TestStatesOfBothFamilies does as TestStates for a node whose environments have
// IPv6, of either kind of range.
func TestStatesOfBothFamilies(t *testing.T) {
	policies := []firewall.Policy{
		{EnvID: "01A", Address: netip.MustParseAddr("10.88.0.2"), Egress: policy.None, Groups: []string{"default/web", "default/db"}},
		{EnvID: "01B", Address: netip.MustParseAddr("10.88.0.10"), Egress: policy.AllowList, Allow: []policy.Destination{
			destination("2001:db8:7::/48"), destination("198.51.100.0/24"), destination("[2001:db8::7]:443/tcp"), destination("[::/0]:53/udp"),
		}},
		{EnvID: "01C", Address: netip.MustParseAddr("10.88.16.2"), Egress: policy.Open, Groups: []string{"default/web"}},
		{EnvID: "01D", Address: netip.MustParseAddr("10.88.255.250"), Egress: policy.Open, Allow: []policy.Destination{destination("[fd00:1::]:5000-5010")}},
	}
	around := firewall.Surroundings{
		Closed:    []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:9::/64")},
		Allow:     []policy.Destination{destination("[fd00:7::20]:5000/tcp"), destination("fd00:ec2::254"), destination("10.9.0.0/16")},
		Resolvers: []netip.Addr{netip.MustParseAddr("192.168.7.1")},
		Apart6:    []firewall.HostLink{{Name: "br0", Bridge: true}, {Name: "eth0"}},
	}
	ssh := mapping("01A", port.SSH, port.TCP, 22000, "10.88.0.2:22")
	states := []struct {
		name     string
		mappings []firewall.Mapping
		policies []firewall.Policy
		around   firewall.Surroundings
	}{
		{name: "nothing"},
		{name: "ports", mappings: []firewall.Mapping{
			ssh, mapping("01D", port.RDP, port.UDP, 33890, "10.88.255.250:3389"),
			from(mapping("01E", port.SSH, port.TCP, 22001, "10.88.0.34:22"), "192.0.2.0/24", "2001:db8::/32"),
			from(mapping("01E", port.SSH, port.TCP, 22002, "10.88.0.34:22"), "192.0.2.0/24"),
			from(mapping("01E", port.SSH, port.TCP, 22003, "10.88.0.34:22"), "2001:db8::7/128"),
			from(mapping("01E", port.SSH, port.TCP, 22004, "10.88.0.34:22"), "0.0.0.0/0"),
			from(mapping("01E", port.SSH, port.TCP, 22005, "10.88.0.34:22"), "10.0.0.0/8", "::/0"),
			from(mapping("01E", port.Custom, port.UDP, 10000, "10.88.0.34:53")),
		}},
		{name: "policies", mappings: []firewall.Mapping{ssh}, policies: policies, around: around},
		{name: "nothing again"},
	}
	onHosts(t, func(t *testing.T, h *host) {
		t.Helper()
		for kind, subnet := range map[string]netip.Prefix{"ula": ula, "routed": routed} {
			f := h.firewall(t, subnet)
			for _, state := range states {
				desired := firewall.Desired{Mappings: state.mappings, Policies: state.policies, Surroundings: state.around}
				if err := f.Set(t.Context(), desired); err != nil {
					t.Fatalf("%s: %v", state.name, err)
				}
				if err := f.IPv6(); err != nil {
					t.Fatal(err)
				}
				same6(t, f, h)
				_, six, _ := strings.Cut(text(t, f), "# IPv6\n")
				golden(t, kind+" "+state.name, six)
				if mended, err := f.Repair(t.Context()); err != nil || len(mended) > 0 {
					t.Fatalf("%s: Repair after Set mended %v, %v", state.name, mended, err)
				}
				there, err := h.firewall(t, subnet).Published(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(named(state.mappings), named(there.Mappings)); diff != "" {
					t.Fatalf("%s: Published (-want +got):\n%s", state.name, diff)
				}
				if !slices.EqualFunc(state.policies, there.Policies, func(a, b firewall.Policy) bool { return a.Equal(&b) }) {
					t.Fatalf("%s: policies are read back as %v, want %v", state.name, there.Policies, state.policies)
				}
				if mended, err := h.firewall(t, subnet).Restore(t.Context(), desired); err != nil || len(mended) > 0 {
					t.Fatalf("%s: Restore by another process mended %v, %v", state.name, mended, err)
				}
			}
		}
		// Without IPv6 again there is nothing but what keeps it away.
		if err := h.firewall(t, netip.Prefix{}).Set(t.Context(), firewall.Desired{Mappings: []firewall.Mapping{ssh}}); err != nil {
			t.Fatal(err)
		}
		if six := saved(t, h, true); strings.Count(six, "-A ") != 1 || !strings.Contains(six, `no IPv6" -j DROP`) {
			t.Errorf("rules of IPv6 are left:\n%s", six)
		}
	})
}

// TestRepairIPv6: what others do to the rules of IPv6 is found and mended, and
// those who look for it at each poll are told.
func TestRepairIPv6(t *testing.T) {
	damages := []string{
		"nat -F", "filter -F RGPU-FWD", "filter -D FORWARD 1", "filter -I INPUT 1 -p tcp -m tcp --dport 22 -j ACCEPT", "filter -A RGPU-OUT -j ACCEPT",
		"raw -D PREROUTING 1", "nat -A RGPU-DNAT -p tcp -m tcp --dport 9 -j DNAT --to-destination [2001:db8::9]:9",
	}
	onHosts(t, func(t *testing.T, h *host) {
		t.Helper()
		f := h.firewall(t, ula)
		desired := firewall.Desired{Mappings: []firewall.Mapping{mapping("01A", port.SSH, port.TCP, 22016, "10.88.0.2:22")}}
		if err := f.Set(t.Context(), desired); err != nil {
			t.Fatal(err)
		}
		for _, damage := range damages {
			h.run(t, true, damage)
			if _, differs, err := f.Check(t.Context(), desired); err != nil || len(differs) == 0 || !strings.HasSuffix(differs[0], "(IPv6)") {
				t.Errorf("%s: Check found %v, %v", damage, differs, err)
			}
			if mended, err := f.Repair(t.Context()); err != nil || len(mended) == 0 {
				t.Fatalf("%s: mended %v, %v", damage, mended, err)
			}
			same6(t, f, h)
		}
		// The fast path meets chains that are gone, and repairs.
		h.run(t, true, "nat -F", "nat -X")
		desired.Mappings = append(desired.Mappings, mapping("01B", port.SSH, port.TCP, 22017, "10.88.0.10:22"))
		if err := f.Set(t.Context(), desired); err != nil {
			t.Fatal(err)
		}
		same6(t, f, h)
		// What a mapping has lost does not make it more open when it is read.
		h.run(t, true, "nat -F RGPU-TCP-22016")
		there, err := h.firewall(t, ula).Published(t.Context())
		if err != nil || len(there.Mappings) != 2 || slices.ContainsFunc(there.Mappings, func(m firewall.Mapping) bool { return len(m.Sources) == 0 }) {
			t.Errorf("published %v, %v, want both for IPv4 alone", there.Mappings, err)
		}
		if err := f.CleanUp(t.Context(), firewall.Kept{}); err != nil {
			t.Fatal(err)
		}
		if rules := h.save(t, true); strings.Contains(rules, "RGPU") {
			t.Errorf("rules are left:\n%s", rules)
		}
	})
}

// TestIPv6Fails: a kernel that does not take the rules of IPv6 is told, IPv4 has
// all that it should, and what was declared comes as soon as it can.
func TestIPv6Fails(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	testutil.NetNS(t)
	dir := t.TempDir()
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, twin := range []string{"", "-save", "-restore"} {
			testutil.Sh(t, "printf '#!/bin/sh\\nexec /usr/sbin/"+name+"-nft"+twin+" \"$@\"\\n' >"+dir+"/"+name+twin+"; chmod +x "+dir+"/"+name+twin)
		}
	}
	f := newFirewall6(t, dir+"/iptables", ula)
	one := mapping("01A", port.SSH, port.TCP, 22000, "10.88.0.2:22")
	if err := f.Set(t.Context(), firewall.Desired{Mappings: []firewall.Mapping{one}}); err != nil || f.IPv6() != nil {
		t.Fatal(err, f.IPv6())
	}
	testutil.Sh(t, "mv "+dir+"/ip6tables-restore "+dir+"/kept; printf '#!/bin/sh\\ncat >/dev/null; echo \"Extension rpfilter revision 0 not supported, missing kernel module?\" >&2; exit 4\\n' >"+
		dir+"/ip6tables-restore; chmod +x "+dir+"/ip6tables-restore")
	two := mapping("01B", port.SSH, port.TCP, 22001, "10.88.0.10:22")
	for range 2 { // known to fail it is not tried with each change
		if err := f.Set(t.Context(), firewall.Desired{Mappings: []firewall.Mapping{one, two}}); err != nil {
			t.Fatal(err)
		}
	}
	if p := problem.Of(f.IPv6()); p == nil || p.Reason != problem.IPv6Unavailable || !strings.Contains(p.Hint, "modprobe") {
		t.Errorf("IPv6 is said to be in force: %v", f.IPv6())
	}
	if rules := saved(t, kernel("/usr/sbin/iptables-nft"), false); !strings.Contains(rules, "10.88.0.10:22") {
		t.Errorf("IPv4 is without what was declared:\n%s", rules)
	}
	testutil.Sh(t, "mv "+dir+"/kept "+dir+"/ip6tables-restore")
	if _, err := f.Repair(t.Context()); err != nil || f.IPv6() != nil {
		t.Fatal(err, f.IPv6())
	}
	same6(t, f, kernel("/usr/sbin/iptables-nft"))
}

// TestTwins: each address of an environment has one twin, which leads back.
func TestTwins(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ subnet, six, address, twin string }{
		{"10.88.0.0/16", "fd88::/48", "10.88.0.2", "fd88::2"},
		{"10.88.0.0/16", "fd88::/48", "10.88.0.26", "fd88:0:0:3::2"},
		{"10.88.0.0/16", "fd88::/48", "10.88.255.249", "fd88:0:0:1fff::1"},
		{"10.88.0.0/16", "2001:db8:0:1::/64", "10.88.0.26", "2001:db8:0:1::3:2"},
		{"10.88.0.0/16", "2001:db8:0:1::/64", "10.88.255.250", "2001:db8:0:1::1fff:2"},
		{"10.88.0.0/16", "fd88:0:0:100::/56", "10.88.0.25", "fd88::100:0:0:3:1"},
		{"10.0.0.0/8", "fd88::/43", "10.255.255.250", "fd88:0:1f:ffff::2"},
		{"10.88.1.8/29", "2001:db8::8:0/112", "10.88.1.10", "2001:db8::8:2"},
	} {
		twins := firewall.Twins{Subnet: netip.MustParsePrefix(c.subnet), Subnet6: netip.MustParsePrefix(c.six)}
		address := netip.MustParseAddr(c.address)
		if !twins.Fits() {
			t.Errorf("%s does not fit into %s", c.subnet, c.six)
		}
		twin := twins.Of(address)
		if twin.String() != c.twin || !twins.Subnet6.Contains(twin) {
			t.Errorf("twin of %s in %s is %s, want %s", address, c.six, twin, c.twin)
		}
		if back, ok := twins.Back(twin); !ok || back != address {
			t.Errorf("%s leads back to %s, %v, want %s", twin, back, ok, address)
		}
	}
	twins := firewall.Twins{Subnet: netip.MustParsePrefix("10.88.0.0/16"), Subnet6: ula}
	for text, want := range map[string]string{
		"fd88:0:0:3::99": "10.88.0.27", "fd88:0:0:3:1::2": "10.88.0.27", "fd88:0:0:2000::2": "invalid IP", "fd89::2": "invalid IP", "10.88.0.2": "invalid IP",
	} {
		if got, _ := twins.Back(netip.MustParseAddr(text)); got.String() != want {
			t.Errorf("%s leads back to %s, want %s", text, got, want)
		}
	}
	for _, tight := range []string{"fd88::/100", "10.0.0.0/8", "::ffff:0:0/96"} {
		if (firewall.Twins{Subnet: netip.MustParsePrefix("10.88.0.0/16"), Subnet6: netip.MustParsePrefix(tight)}).Fits() {
			t.Errorf("a /16 fits into %s", tight)
		}
	}
}
