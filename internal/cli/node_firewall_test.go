package cli_test

import (
	"strings"
	"testing"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func TestNodeFirewall(t *testing.T) {
	f := newFake(t)
	if code, stdout, _ := f.run(t, "node", "firewall", "diff"); code != 0 || stdout != "all is as declared\n" {
		t.Errorf("nothing differs: code %d, %q", code, stdout)
	}
	if code, _, _ := f.run(t, "node", "firewall", "diff", "--exit-code"); code != 0 {
		t.Errorf("nothing differs, with --exit-code: code %d", code)
	}
	f.differs = []*remotegpuv1.FirewallDifference{{
		Kind:  remotegpuv1.FirewallDifferenceKind_FIREWALL_DIFFERENCE_KIND_MISSING,
		Table: "nat", Chain: "RGPU-DNAT", Rule: "-A RGPU-DNAT -p tcp\x1b[31m", Environment: "01A",
	}}
	if code, stdout, _ := f.run(t, "node", "firewall", "diff"); code != 0 || stdout != "- nat -A RGPU-DNAT -p tcp [31m\n" {
		t.Errorf("a difference: code %d, %q", code, stdout)
	}
	if code, stdout, _ := f.run(t, "node", "firewall", "diff", "-o", "json"); code != 0 || !strings.Contains(stdout, `"FIREWALL_DIFFERENCE_KIND_MISSING"`) {
		t.Errorf("as JSON: code %d, %s", code, stdout)
	}
	if code, stdout, stderr := f.run(t, "node", "firewall", "diff", "--exit-code"); code != 1 || !strings.HasPrefix(stdout, "- nat ") || stderr != "" {
		t.Errorf("with --exit-code: code %d, %q %q", code, stdout, stderr)
	}
	if code, stdout, _ := f.run(t, "node", "firewall", "show"); code != 0 || stdout != "*nat\n:RGPU-DNAT - [0:0]\nCOMMIT\n" {
		t.Errorf("show: code %d, %q", code, stdout)
	}
	f.repairs = &remotegpuv1.FirewallState{Watch: "events", Repairs: 3, LatestRepairs: []*remotegpuv1.FirewallRepair{
		{At: ago(0), What: []string{"a", "b", "c", "d", "e"}, By: []string{"nft[12]"}},
	}}
	if code, stdout, _ := f.run(t, "node", "info"); code != 0 || !strings.Contains(stdout, "the kernel tells of changes; mended 3 times, last ") ||
		!strings.Contains(stdout, ": a, b, c, d and 1 more (by nft[12])") {
		t.Errorf("node info: code %d, %s", code, stdout)
	}
}
