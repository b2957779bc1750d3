package firewall_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/port"
)

// TestForeignPorts: ports that rules of other tools lead elsewhere are found in
// both backends, ours are not among them, and looking makes no table.
func TestForeignPorts(t *testing.T) {
	onBackends(t, func(t *testing.T, path string) {
		t.Helper()
		f := newFirewall(t, path)
		found := func() (spans []string) {
			t.Helper()
			foreign, err := f.Foreign(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, span := range foreign {
				spans = append(spans, fmt.Sprintf("%s %d-%d %s", span.Protocol, span.First, span.Last, span.Rule))
			}
			slices.Sort(spans)
			return spans
		}
		if err := f.Set(t.Context(), firewall.Desired{Mappings: []firewall.Mapping{mapping("01A", port.SSH, port.TCP, 22000, "10.88.0.2:22")}}); err != nil {
			t.Fatal(err)
		}
		if got := found(); len(got) != 0 {
			t.Errorf("without other tools: %q", got)
		}
		if path == "/usr/sbin/iptables-nft" {
			if got := testutil.Sh(t, "cat /proc/thread-self/net/ip_tables_names 2>/dev/null || true"); got != "" {
				t.Errorf("looking for rules made the legacy tables %q", got)
			}
		}
		for _, backend := range []string{"nft", "legacy"} {
			testutil.Sh(t, fmt.Sprintf(`
				iptables-%[1]s -t nat -N DOCKER-%[1]s; iptables-%[1]s -t nat -N CNI-DN-%[1]s; iptables-%[1]s -t nat -N KUBE-NODEPORTS; iptables-%[1]s -t nat -N KUBE-EXT-1
				iptables-%[1]s -t nat -A DOCKER-%[1]s ! -i docker0 -p tcp --dport 8080 -m comment --comment 'a "--dport 9"' -j DNAT --to-destination 172.17.0.2:80
				iptables-%[1]s -t nat -A DOCKER-%[1]s -d 127.0.0.1/32 ! -i docker0 -p udp --dport 53 -j DNAT --to-destination 172.17.0.2:53
				iptables-%[1]s -t nat -A CNI-DN-%[1]s -p tcp -m multiport --dports 10000,10010:10019 -j REDIRECT --to-ports 1
				iptables-%[1]s -t nat -A KUBE-NODEPORTS -p tcp --dport 30080 -j KUBE-EXT-1
				iptables-%[1]s -t nat -A PREROUTING -d 192.0.2.9/32 -p tcp --dport 443 -j DNAT --to-destination 172.17.0.3
				iptables-%[1]s -t nat -A PREROUTING -p tcp --dport 444 -j RETURN`, backend))
		}
		var want []string
		for _, backend := range []string{"nft", "legacy"} {
			for _, span := range []string{"tcp 8080-8080 chain DOCKER-%s", "udp 53-53 chain DOCKER-%s", "tcp 10000-10000 chain CNI-DN-%s", "tcp 10010-10019 chain CNI-DN-%s"} {
				want = append(want, fmt.Sprintf(span, backend)+" of iptables")
			}
			want = append(want, "tcp 30080-30080 chain KUBE-NODEPORTS of iptables")
		}
		slices.Sort(want)
		if diff := cmp.Diff(want, found()); diff != "" {
			t.Errorf("other tools' ports (-want +got):\n%s", diff)
		}
	})
}
