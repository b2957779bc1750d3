package firewall_test

import (
	"net/netip"
	"strings"
	"testing"

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
