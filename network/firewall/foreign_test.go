package firewall_test

import (
	"fmt"
	"net/netip"
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

// TestForeignPortsOfNftables6: those of IPv6 count where environments have it.
func TestForeignPortsOfNftables6(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	testutil.Sh(t, `ip link set lo up; ip addr add 2001:db8::1/128 dev lo nodad; nft -f - <<'END'
		table ip6 admin {
			map services { type ipv6_addr . inet_proto . inet_service : verdict; elements = { 2001:db8::1 . tcp . 8081 : goto a, fd96::1 . tcp . 6443 : goto a } }
			chain pre {
				type nat hook prerouting priority dstnat; policy accept;
				tcp dport 2222 dnat to [fd99::2]:22
				ip6 daddr 2001:db8::1 udp dport 5300 redirect to :53
				ip6 daddr 2001:db8::/32 udp dport 5301 redirect to :53
				ip6 daddr 2001:db8::/33 udp dport 5302 redirect to :53
				ip6 daddr 2001:db8:1::7 tcp dport 443 dnat to fd99::3
				ip6 daddr . meta l4proto . th dport vmap @services
			}
			chain a { meta l4proto tcp dnat to [fd99::4]:8080; }
		}
END`)
	for _, six := range []bool{true, false} {
		cfg := firewall.Config{Subnet: netip.MustParsePrefix("10.88.0.0/16"), Path: "/usr/sbin/iptables-nft"}
		if six {
			cfg.Subnet6 = netip.MustParsePrefix("fd88::/48")
		}
		f, err := firewall.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		foreign, err := f.Foreign(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got, want []string
		for _, span := range foreign {
			got = append(got, fmt.Sprintf("%s %d-%d %s", span.Protocol, span.First, span.Last, span.Rule))
		}
		slices.Sort(got)
		if six {
			const pre = " chain pre of the nftables table ip6 admin"
			want = []string{"tcp 2222-2222" + pre, "tcp 8081-8081 chain a of the nftables table ip6 admin", "udp 5300-5300" + pre, "udp 5301-5301" + pre, "udp 5302-5302" + pre}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("with IPv6 %v (-want +got):\n%s", six, diff)
		}
	}
}

// TestForeignPortsOfNftables: the same of tables that were made with nftables,
// whose rules lead on through chains, sets and maps.
func TestForeignPortsOfNftables(t *testing.T) {
	onBackends(t, func(t *testing.T, path string) {
		t.Helper()
		f := newFirewall(t, path)
		if err := f.Set(t.Context(), firewall.Desired{Mappings: []firewall.Mapping{mapping("01A", port.SSH, port.TCP, 22000, "10.88.0.2:22")}}); err != nil {
			t.Fatal(err)
		}
		testutil.Sh(t, `ip link set lo up; ip addr add 192.0.2.1/32 dev lo; nft -f - <<'END'
			table ip admin {
				set web { type inet_service; flags interval; elements = { 8000-8002, 8443 } }
				map named { type inet_service : ipv4_addr . inet_service; elements = { 9001 : 172.17.0.5 . 1, 9002 : 172.17.0.6 . 2 } }
				chain pre {
					type nat hook prerouting priority dstnat; policy accept;
					iifname "eth9" tcp dport 2222 counter dnat to 172.17.0.2:22
					ip daddr 192.0.2.0/24 udp dport 5300-5310 redirect to :53
					ip daddr 198.51.100.7 tcp dport 443 dnat to 172.17.0.3
					tcp dport @web dnat to 172.17.0.4
					dnat ip addr . port to tcp dport map @named
					iifname "dmz" dnat to 172.17.0.9
					tcp dport 7000 accept
					tcp dport { 7001, 7003 } jump more
				}
				chain more { tcp dport 7000-7002 dnat to 172.17.0.7:80; }
				chain post { type nat hook postrouting priority srcnat; policy accept; tcp dport 25 snat to 192.0.2.1; }
			}
			table inet cluster {
				map nodeports { type inet_proto . inet_service : verdict; elements = { tcp . 30080 : goto a, udp . 30053 : goto a, tcp . 30081 : drop } }
				map services { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.96.0.1 . tcp . 6443 : goto a, 192.0.2.1 . tcp . 8081 : goto a } }
				chain out { type nat hook output priority -100; fib daddr type local jump services; }
				chain services {
					ip daddr . meta l4proto . th dport vmap @services
					meta l4proto . th dport vmap @nodeports
				}
				chain a { meta l4proto { tcp, udp } dnat ip to 10.244.0.3:8080; }
				chain in { type filter hook input priority 0; tcp dport { 22, 80 } accept; }
			}
END`)
		foreign, err := f.Foreign(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, span := range foreign {
			got = append(got, fmt.Sprintf("%s %d-%d %s", span.Protocol, span.First, span.Last, span.Rule))
		}
		slices.Sort(got)
		want := []string{
			"tcp 2222-2222 chain pre of the nftables table ip admin",
			"tcp 30080-30080 chain a of the nftables table inet cluster",
			"tcp 7001-7001 chain more of the nftables table ip admin",
			"tcp 8000-8002 chain pre of the nftables table ip admin",
			"tcp 8081-8081 chain a of the nftables table inet cluster",
			"tcp 8443-8443 chain pre of the nftables table ip admin",
			"tcp 9001-9001 chain pre of the nftables table ip admin",
			"tcp 9002-9002 chain pre of the nftables table ip admin",
			"udp 30053-30053 chain a of the nftables table inet cluster",
			"udp 5300-5310 chain pre of the nftables table ip admin",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("other tools' ports (-want +got):\n%s", diff)
		}
	})
}
