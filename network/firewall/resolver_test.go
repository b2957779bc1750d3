package firewall_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network/firewall"
)

// TestResolverIsOpenToEnvironments: while names are served the resolver's port
// is open to environments, at that address alone, and the kernel has the rules
// as they were rendered; while they are not nothing is.
func TestResolverIsOpenToEnvironments(t *testing.T) {
	onBackends(t, func(t *testing.T, path string) {
		t.Helper()
		f, err := firewall.New(firewall.Config{
			Subnet: netip.MustParsePrefix("10.88.0.0/16"), Path: path, Resolver: netip.MustParseAddr("10.88.0.1"),
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Set(t.Context(), firewall.Desired{Surroundings: firewall.Surroundings{Names: true}}); err != nil {
			t.Fatal(err)
		}
		same(t, f, kernel(path))
		for _, rule := range []string{
			"-A RGPU-IN -d 10.88.0.1/32 -i rgpu-+ -p udp -m udp --dport 53 -j ACCEPT",
			"-A RGPU-IN -d 10.88.0.1/32 -i rgpu-+ -p tcp -m tcp --dport 53 -j ACCEPT",
		} {
			if !strings.Contains(saved(t, kernel(path), false), rule+"\n") {
				t.Errorf("the kernel has no rule %s", rule)
			}
		}
		if err := f.Set(t.Context(), firewall.Desired{}); err != nil {
			t.Fatal(err)
		}
		if left := saved(t, kernel(path), false); strings.Contains(left, "--dport 53 ") {
			t.Errorf("names are not served, and the port is open:\n%s", left)
		}
	})
}

// TestNamesThatAreStopped: a chain of others in the way of packets to the host
// that lets no question for names through is told, with what to do, while names
// are served; one that may let them through is not.
func TestNamesThatAreStopped(t *testing.T) {
	onBackends(t, func(t *testing.T, path string) {
		t.Helper()
		f, err := firewall.New(firewall.Config{Subnet: netip.MustParsePrefix("10.88.0.0/16"), Path: path, Resolver: netip.MustParseAddr("10.88.0.1")})
		if err != nil {
			t.Fatal(err)
		}
		conflicts := func() (all string) {
			t.Helper()
			found, err := f.Conflicts(t.Context(), false)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range found {
				all += p.Message + " | " + p.Hint + "\n"
			}
			return all
		}
		gate := func(policy string, rules ...string) {
			t.Helper()
			testutil.Sh(t, "nft -f - <<'EOF'\ntable inet guard\ndelete table inet guard\ntable inet guard {\nchain more { meta l4proto { tcp, udp } th dport 50-60 accept; }\n"+
				"chain other { tcp dport 53 accept; }\nchain gate {\ntype filter hook input priority 0; policy "+policy+";\n"+strings.Join(rules, "\n")+"\n}\n}\nEOF")
		}
		usual := []string{
			"iif lo accept", "iifname eth0 accept", "iifname { docker0, br0 } accept", "ct state established,related accept",
			"ct state vmap { established : accept, related : accept, invalid : drop }", "tcp dport { 22, 53, 443 } accept", "udp dport 5353 accept",
			"icmp type echo-request accept", "ip daddr 192.0.2.1 udp dport 53 accept", "meta nfproto ipv6 udp dport 53 accept", "jump other",
		}
		gate("drop", usual...)
		if got := conflicts(); got != "" {
			t.Errorf("without names: %s", got)
		}
		if err := f.Set(t.Context(), firewall.Desired{Surroundings: firewall.Surroundings{Names: true}}); err != nil {
			t.Fatal(err)
		}
		for what, rules := range map[string][]string{"nothing at all": nil, "the usual": usual} {
			gate("drop", rules...)
			if got := conflicts(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `chain gate of the nftables table inet guard stops what environments ask`) ||
				!strings.Contains(got, `nft insert rule inet guard gate iifname "rgpu-*" udp dport 53 accept`) {
				t.Errorf("%s is accepted: %q", what, got)
			}
		}
		gate("accept", append(usual, "counter reject")...)
		if got := conflicts(); strings.Count(got, "\n") != 1 {
			t.Errorf("all else is rejected: %q", got)
		}
		testutil.Sh(t, `nft insert rule inet guard gate iifname '"rgpu-*"' udp dport 53 accept`)
		if got := conflicts(); got != "" {
			t.Errorf("what the hint says was done: %s", got)
		}
		for _, rule := range []string{
			"udp dport { 53, 67 } accept", "ct state new,established accept", "jump more", "udp dport vmap { 53 : accept }", "iifname != eth0 accept",
			"ip daddr 10.88.0.0/24 accept", "meta l4proto vmap { tcp : jump other, udp : goto more }", "ct state vmap { new : accept }", "ip saddr 10.0.0.0/8 accept",
		} {
			gate("drop", append(usual, rule)...)
			if got := conflicts(); got != "" {
				t.Errorf("%s: %s", rule, got)
			}
		}
		gate("accept", usual...)
		if got := conflicts(); got != "" {
			t.Errorf("a chain that accepts: %s", got)
		}
		other := map[bool]string{true: "/usr/sbin/iptables-legacy", false: "/usr/sbin/iptables-nft"}[strings.HasSuffix(path, "nft")]
		testutil.Sh(t, other+" -P INPUT DROP")
		if got := conflicts(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "-P INPUT ACCEPT") {
			t.Errorf("the policy in the other backend: %q", got)
		}
	})
}
