package network_test

import (
	"net/netip"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network/port"
)

// TestKernelWithoutIPv6: on a host whose kernel has no IPv6 everything is as
// before it, and with a range for it a condition says that there is none.
func TestKernelWithoutIPv6(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	l := newLab(t, "nft")
	// As far as a directory of settings tells.
	dir := t.TempDir()
	testutil.Sh(t, "cd "+dir+"; mkdir net; mount -t tmpfs none net; for d in ipv4 core netfilter; do mkdir net/$d; mount --bind /proc/sys/net/$d net/$d; done; mount --rbind net /proc/sys/net")
	defer func() { testutil.Sh(t, "umount -l /proc/sys/net; umount -R -l "+dir+"/net") }()
	for name, range6 := range map[string]netip.Prefix{"without a range": {}, "with a range": ula} {
		l.range6 = range6
		l.networks = l.open(t, nil)
		env := l.attach(t, "01ENVA", 0)
		env.Answer(t, "tcp", "0.0.0.0:80", "A")
		mappings := []port.Mapping{published(port.TCP, 10000, 80)}
		if err := l.networks.Publish(t.Context(), "01ENVA", l.networks.Address(0), mappings); err != nil {
			t.Fatal(err)
		}
		all := []port.Published{{EnvID: "01ENVA", Address: l.networks.Address(0), Mappings: mappings}}
		bridge := testutil.Sh(t, "ip -o -4 addr show to 10.88.0.1/29 | awk '{print $2}'")
		testutil.Sh(t, "ip -4 addr flush dev "+bridge)
		if drift, err := l.networks.Drift(t.Context(), all, nil); err != nil || len(drift) != 1 || drift[0].EnvID != "01ENVA" || drift[0].Name != bridge {
			t.Errorf("%s: drift of a bridge without address %v, %v", name, drift, err)
		}
		if err := l.networks.Restore(t.Context(), all, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if drift, err := l.networks.Drift(t.Context(), all, nil); err != nil || len(drift) > 0 {
			t.Errorf("%s: drift %v, %v", name, drift, err)
		}
		if got, err := l.lan.Ask(t, "tcp", hostIP+":10000", patience); err != nil {
			t.Errorf("%s: the published port: %q, %v", name, got, err)
		}
		told := l.networks.Conditions()
		if range6.IsValid() != (len(told) == 1) || len(told) == 1 && (told[0].Reason != problem.IPv6Unavailable || told[0].Hint == "") {
			t.Errorf("%s: conditions %v", name, told)
		}
		if l.networks.HasIPv6() || l.networks.Address6(0).IsValid() {
			t.Errorf("%s: environments are said to have IPv6", name)
		}
		cleanUp(t, l)
	}
}
