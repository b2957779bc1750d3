package firewall_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/internal/hostexec"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/firewall/firewalltest"
	"github.com/remotegpu/remotegpu/network/port"
)

// TestTables: what stands for the kernel's tables does with a script what the
// kernel's do, and refuses what they refuse.
func TestTables(t *testing.T) {
	long := strings.Repeat("N", 28)
	start := "*nat\n:OURS - [0:0]\n:LEAF - [0:0]\n-A OURS -p tcp -m tcp --dport 1:9 -j LEAF\n-A OURS -s 192.0.2.0/24 -j RETURN\n-A PREROUTING -j OURS\nCOMMIT\n"
	cases := []struct {
		name, script string
		refused      bool
		chain        string // to be looked at; "": OURS
		want         string // its rules, by "|"
	}{
		{
			name: "appended and inserted", script: "*nat\n-I OURS 2 -s 192.0.2.1/32 -j RETURN\n-A OURS -j LEAF\n-I OURS -j ACCEPT\nCOMMIT\n",
			want: "-j ACCEPT|-p tcp -m tcp --dport 1:9 -j LEAF|-s 192.0.2.1/32 -j RETURN|-s 192.0.2.0/24 -j RETURN|-j LEAF",
		},
		{name: "declared again is emptied", script: "*nat\n:OURS - [0:0]\n-A OURS -j RETURN\nCOMMIT\n", want: "-j RETURN"},
		{name: "a built-in chain is not emptied", script: "*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n", chain: "PREROUTING", want: "-j OURS"},
		{name: "deleted by rule and number", script: "*nat\n-D OURS -s 192.0.2.0/24 -j RETURN\n-D OURS 1\nCOMMIT\n"},
		{name: "replaced", script: "*nat\n-R OURS 2 -j RETURN\nCOMMIT\n", want: "-p tcp -m tcp --dport 1:9 -j LEAF|-j RETURN"},
		{
			name: "one of two that say the same", script: "*nat\n-A OURS -s 192.0.2.0/24 -j RETURN\n-D OURS -s 192.0.2.0/24 -j RETURN\nCOMMIT\n",
			want: "-p tcp -m tcp --dport 1:9 -j LEAF|-s 192.0.2.0/24 -j RETURN",
		},
		{name: "flushed and removed", script: "*nat\n-F PREROUTING\n-F OURS\n-X OURS\nCOMMIT\n"},
		{
			name: "comments are quoted as need be", script: "*nat\n:OURS - [0:0]\n-A OURS -m comment --comment \"a-b_c\" -j RETURN\n-A OURS -m comment --comment a:b -j RETURN\n-A OURS -m comment --comment \"-j LEAF \\\"x\" -j RETURN\nCOMMIT\n",
			want: `-m comment --comment a-b_c -j RETURN|-m comment --comment "a:b" -j RETURN|-m comment --comment "-j LEAF \"x" -j RETURN`,
		},
		{name: "a name of 28 characters", script: "*nat\n-N " + long + "\n-A " + long + " -j RETURN\nCOMMIT\n", chain: long, want: "-j RETURN"},
		{name: "a name that is too long", script: "*nat\n-N " + long + "N\nCOMMIT\n", refused: true},
		{name: "a bad line undoes its table", script: "*nat\n-F OURS\n-A OURS -j NOBODY\nCOMMIT\n", refused: true},
		{name: "tables before it stay", script: "*filter\n:KEPT - [0:0]\n-A KEPT -j DROP\nCOMMIT\n*nat\n-A NOBODY -j RETURN\nCOMMIT\n", refused: true, chain: "KEPT", want: "-j DROP"},
		{name: "without COMMIT", script: "*nat\n-F OURS\n", refused: true},
		{name: "delete what is not there", script: "*nat\n-D OURS -j ACCEPT\nCOMMIT\n", refused: true},
		{name: "remove what is in use", script: "*nat\n-X LEAF\nCOMMIT\n", refused: true},
		{name: "remove what has rules", script: "*nat\n-F PREROUTING\n-X OURS\nCOMMIT\n", refused: true},
		{name: "made twice", script: "*nat\n-N OURS\nCOMMIT\n", refused: true},
		{name: "a circle", script: "*nat\n-A LEAF -j OURS\nCOMMIT\n", refused: true},
		{name: "insert too far", script: "*nat\n-I OURS 9 -j RETURN\nCOMMIT\n", refused: true},
		{name: "an option without its match", script: "*nat\n-A OURS -p tcp -m comment --ctstate DNAT -j RETURN\nCOMMIT\n", refused: true},
		{name: "a target of another table", script: "*filter\n-A FORWARD -j DNAT --to-destination 192.0.2.1\nCOMMIT\n", refused: true},
		{name: "no such table", script: "*nowhere\nCOMMIT\n", refused: true},
	}
	onHosts(t, func(t *testing.T, h *host) {
		t.Helper()
		for _, c := range cases {
			if err := h.restore(t, false, "*nat\n-F\n-X\nCOMMIT\n"); err != nil {
				t.Fatal(err)
			}
			if err := h.restore(t, false, start); err != nil {
				t.Fatal(err)
			}
			before := strings.Join(h.rules(t, false, "OURS"), "|")
			if err := h.restore(t, false, c.script); (err != nil) != c.refused {
				t.Errorf("%s: %v, want it refused: %v", c.name, err, c.refused)
			}
			chain, want := "OURS", c.want
			if c.chain != "" {
				chain = c.chain
			} else if c.refused {
				want = before
			}
			if diff := cmp.Diff(want, strings.Join(h.rules(t, false, chain), "|")); diff != "" {
				t.Errorf("%s: rules of %s (-want +got):\n%s", c.name, chain, diff)
			}
		}
	})
}

// TestStandInFails: what the kernel does not do is told, and leaves what was
// declared before in force; IPv4 does not depend on IPv6.
func TestStandInFails(t *testing.T) {
	t.Parallel()
	h := &host{four: new(firewalltest.Tables), six: new(firewalltest.Tables)}
	f := h.firewall(t, ula)
	one := firewall.Desired{Mappings: []firewall.Mapping{mapping("01A", port.SSH, port.TCP, 22000, "10.88.0.2:22")}}
	if err := f.Set(t.Context(), one); err != nil || f.IPv6() != nil {
		t.Fatal(err, f.IPv6())
	}
	whole := saved(t, h, false)
	h.four.Fail(&hostexec.Error{Program: "iptables-restore", Code: 4, Stderr: "Another app is currently holding the xtables lock"})
	if p := problem.Of(f.Set(t.Context(), firewall.Desired{})); p == nil || p.Reason != problem.FirewallFailed || !strings.Contains(p.Hint, "lock") {
		t.Errorf("under a foreign lock: %+v", p)
	}
	h.four.Fail(nil)
	if got := saved(t, h, false); got != whole {
		t.Errorf("a Set that failed changed rules:\n%s", got)
	}
	h.six.Fail(&hostexec.Error{Program: "ip6tables-restore", Code: 4, Stderr: "Extension rpfilter revision 0 not supported, missing kernel module?"})
	if err := f.Set(t.Context(), firewall.Desired{}); err != nil {
		t.Errorf("IPv4 depends on IPv6: %v", err)
	}
	if p := problem.Of(f.IPv6()); p == nil || p.Reason != problem.IPv6Unavailable || !strings.Contains(p.Hint, "modprobe") {
		t.Errorf("IPv6 is said to be in force: %+v", p)
	}
	if got := saved(t, h, false); strings.Contains(got, "10.88.0.2:22") {
		t.Errorf("IPv4 still publishes what was withdrawn:\n%s", got)
	}
	h.six.Fail(nil)
	if _, err := f.Repair(t.Context()); err != nil || f.IPv6() != nil {
		t.Fatal(err, f.IPv6())
	}
	same6(t, f, h)
}

// TestWhatStaysApart: a clean-up leaves what keeps the host's own networks
// apart, in both families, and nothing else; so does a start without IPv6.
func TestWhatStaysApart(t *testing.T) {
	links := []firewall.HostLink{{Name: "br0", Bridge: true}, {Name: "eth0"}}
	around := firewall.Surroundings{Apart: links, Apart6: links}
	desired := firewall.Desired{Surroundings: around, Mappings: []firewall.Mapping{mapping("01A", port.SSH, port.TCP, 22000, "10.88.0.2:22")}}
	chains := func(t *testing.T, h *host, six bool) string {
		t.Helper()
		var all []string
		for line := range strings.Lines(h.save(t, six)) {
			if name, ok := strings.CutPrefix(line, ":RGPU-"); ok {
				all = append(all, strings.Fields(name)[0])
			}
		}
		slices.Sort(all)
		return strings.Join(all, " ")
	}
	onHosts(t, func(t *testing.T, h *host) {
		t.Helper()
		if err := h.firewall(t, ula).Set(t.Context(), desired); err != nil {
			t.Fatal(err)
		}
		// A process without IPv6.
		f := h.firewall(t, netip.Prefix{})
		if _, err := f.Restore(t.Context(), desired); err != nil {
			t.Fatal(err)
		}
		if got := chains(t, h, true); got != "APART FWD RAW USER" {
			t.Errorf("without IPv6 it has chains %s", got)
		}
		apart := append(h.rules(t, true, "RGPU-FWD"), h.rules(t, true, "RGPU-APART")...)
		if hook := h.rules(t, true, "FORWARD"); len(apart) != 5 || len(hook) != 1 {
			t.Errorf("without IPv6: %q, hooks %q", apart, hook)
		}
		h.run(t, true, "filter -F FORWARD")
		if _, differs, err := f.Check(t.Context(), desired); err != nil || len(differs) != 1 {
			t.Errorf("Check of a hook that is gone: %v, %v", differs, err)
		}
		if mended, err := f.Repair(t.Context()); err != nil || len(mended) != 1 {
			t.Errorf("mended %v, %v", mended, err)
		}
		for range 2 { // a clean-up can be repeated
			if err := h.firewall(t, netip.Prefix{}).CleanUp(t.Context(), firewall.Kept{Apart: links, Apart6: links}); err != nil {
				t.Fatal(err)
			}
			for _, six := range []bool{false, true} {
				if got := chains(t, h, six); got != "APART FWD" {
					t.Errorf("after a clean-up there are chains %s", got)
				}
				got := append(h.rules(t, six, "RGPU-FWD"), h.rules(t, six, "RGPU-APART")...)
				if diff := cmp.Diff(apart, got); diff != "" {
					t.Errorf("rules after a clean-up (-before +after):\n%s", diff)
				}
				if hook := h.rules(t, six, "FORWARD"); len(hook) != 1 || len(h.rules(t, six, "INPUT")) > 0 {
					t.Errorf("hooks after a clean-up: %q", hook)
				}
			}
		}
		if err := h.firewall(t, ula).Set(t.Context(), desired); err != nil {
			t.Fatal(err)
		}
		if err := h.firewall(t, netip.Prefix{}).CleanUp(t.Context(), firewall.Kept{}); err != nil {
			t.Fatal(err)
		}
		if four, six := chains(t, h, false), chains(t, h, true); four+six != "" {
			t.Errorf("chains are left: %s, %s", four, six)
		}
	})
}
