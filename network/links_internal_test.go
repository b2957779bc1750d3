package network

import (
	"fmt"
	"slices"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// TestSettingsOfLinks: what the kernel tells of an interface's settings with its
// list of interfaces is what /proc/sys says, of each that bridges need.
func TestSettingsOfLinks(t *testing.T) {
	testutil.Require(t, testutil.Root)
	if !testutil.Isolated(t) {
		return
	}
	const name = "rgpu-aaaaaaaa"
	testutil.Sh(t, "ip link add lan0 type bridge && ip link add rgpuv-aaaaaaaa type veth peer name left && ip link add "+name+" type bridge")
	settings := append(ofBridge(name), disableIPv6(name))
	listed := func() hostLink {
		t.Helper()
		if all, err := ours(); err != nil || len(all) != 2 {
			t.Fatalf("ours are %v, %v", all, err)
		}
		links, err := ourBridges()
		if i := slices.IndexFunc(links, func(l hostLink) bool { return l.Attrs().Name == name }); err == nil && len(links) == 1 && i == 0 {
			return links[0]
		}
		t.Fatalf("our bridges are %v, %v", links, err)
		return hostLink{}
	}
	for i := range settings {
		for _, value := range []string{"0", "1", "2", "0"} { // each alone, so that no two can be taken for each other
			if err := writeSetting(settings[i].path, value); err != nil {
				continue // one that has no such value
			}
			link := listed()
			for j := range settings {
				there, err := readSetting(settings[j].path)
				if err != nil {
					t.Fatal(err)
				}
				for _, wanted := range []string{"-1", "0", "1", "2"} {
					setting := settings[j]
					setting.value = wanted
					if got := link.has(&setting); got != (there == wanted) {
						t.Errorf("%s is %s; told that it is %s: %t", setting.name(), there, wanted, got)
					}
				}
			}
		}
	}
	// It is brought in order by what was told.
	testutil.Sh(t, fmt.Sprintf("ip link set %s alias %sENV && sysctl -qw net.ipv4.conf.%[1]s.rp_filter=1 net.ipv6.conf.%[1]s.accept_ra=1", name, aliasPrefix))
	n := &Networks{}
	mended, err := n.mendBridges([]hostLink{listed()})
	if err != nil || !slices.Contains(mended, "net.ipv4.conf."+name+".rp_filter") || !slices.Contains(mended, "net.ipv6.conf."+name+".accept_ra") {
		t.Errorf("mended %q, %v", mended, err)
	}
	if mended, err = n.mendBridges([]hostLink{listed()}); err != nil || len(mended) > 0 {
		t.Errorf("mended again: %q, %v", mended, err)
	}
	unknown := sysctl{"ipv4/conf/" + name + "/forwarding", "0", false}
	if link := listed(); link.has(&unknown) {
		t.Error("a setting counts as told that is not looked for")
	}
}
