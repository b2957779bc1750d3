package firewall_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/port"
)

// counting makes programs that do as those of iptables and note that they ran.
func counting(t *testing.T, backend string) (iptables string, ran func() string) {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	for _, other := range []string{"nft", "legacy"} {
		for _, family := range []string{"iptables", "ip6tables"} {
			for _, what := range []string{"", "-save", "-restore"} {
				name := fmt.Sprintf("%s-%s%s", family, other, what)
				script := fmt.Sprintf("#!/bin/sh\necho %s >>%s\nexec /usr/sbin/%s \"$@\"\n", name, log, name)
				if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return filepath.Join(dir, "iptables-"+backend), func() string {
		t.Helper()
		text, err := os.ReadFile(log)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if err := os.WriteFile(log, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
}

// TestRulesNobodyChangedAreNotReadAgain: while the kernel says that no rule was
// changed no program is run, whatever is asked; what others change is seen and
// mended all the same, and nothing of what was seen before is told after it.
func TestRulesNobodyChangedAreNotReadAgain(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "lock"))
			testutil.NetNS(t)
			program := "/usr/sbin/iptables-" + backend
			iptables, ran := counting(t, backend)
			f := newFirewall6(t, iptables, ula)
			desired := firewall.Desired{Mappings: []firewall.Mapping{mapping("01A", port.Custom, port.TCP, 10000, "10.88.0.2:80")}}
			// pass is what a pass of the reconciler asks; want is how many of the
			// mappings are in force before it.
			pass := func(want int) (differs, mended []string) {
				t.Helper()
				there, differs, err := f.Check(t.Context(), desired)
				if err != nil || len(there.Mappings) != want {
					t.Errorf("in force: %v, %v", there.Mappings, err)
				}
				if mended, err = f.Restore(t.Context(), desired); err != nil {
					t.Error(err)
				}
				return differs, mended
			}
			still := func() {
				t.Helper()
				pass(1) // it verifies what was applied
				ran()
				if differs, mended := pass(1); len(differs)+len(mended) > 0 {
					t.Errorf("without a change: %v differs, %v is mended", differs, mended)
				}
				if programs := ran(); programs != "" {
					t.Errorf("without a change there ran:\n%s", programs)
				}
			}
			if err := f.Set(t.Context(), desired); err != nil {
				t.Fatal(err)
			}
			still()
			for _, do := range []string{
				program + " -t nat -F RGPU-DNAT", program + " -D FORWARD 1",
				strings.Replace(program, "iptables", "ip6tables", 1) + " -t nat -F RGPU-DNAT",
			} {
				testutil.Sh(t, do)
				if differs, mended := pass(1); len(differs) == 0 || len(mended) == 0 {
					t.Errorf("after %s: %v differs, %v is mended", do, differs, mended)
				}
				still()
			}
			desired.Mappings = append(desired.Mappings, mapping("01B", port.Custom, port.TCP, 10001, "10.88.0.10:80"))
			if differs, mended := pass(1); len(differs) == 0 || len(mended) == 0 {
				t.Errorf("what is declared beside: %v differs, %v is mended", differs, mended)
			}
			desired.Mappings = desired.Mappings[:1]
			pass(2)
			still()
			if backend != "nft" {
				return
			}
			// What belongs to others is looked through once.
			look := func() (spans []port.Span, conflicts string) {
				t.Helper()
				spans, err := f.Foreign(t.Context())
				if err != nil {
					t.Error(err)
				}
				found, err := f.Conflicts(t.Context(), false)
				if err != nil {
					t.Error(err)
				}
				return spans, fmt.Sprint(found)
			}
			_, before := look()
			ran()
			look()
			if programs := ran(); programs != "" {
				t.Errorf("to look through the same rules of others there ran:\n%s", programs)
			}
			testutil.Sh(t, program+" -t nat -A PREROUTING -p tcp --dport 4711 -m addrtype --dst-type LOCAL -j DNAT --to-destination 192.0.2.1:80")
			testutil.Sh(t, "/usr/sbin/iptables-legacy -A FORWARD -s 192.0.2.7 -j DROP")
			spans, after := look()
			if !slices.ContainsFunc(spans, func(s port.Span) bool { return s.First == 4711 }) || after == before {
				t.Errorf("of new rules of others: %v, %s", spans, after)
			}
			testutil.Sh(t, program+" -t nat -F PREROUTING; /usr/sbin/iptables-legacy -F FORWARD")
			if spans, after = look(); slices.ContainsFunc(spans, func(s port.Span) bool { return s.First == 4711 }) || after != before {
				t.Errorf("of rules of others that are gone: %v, %s", spans, after)
			}
		})
	}
}
