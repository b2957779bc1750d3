package firewall_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/port"
)

// TestWatch: changes of others to our chains and hooks are told, with who made
// them where the kernel says so; our own are not, nor what does not touch us.
func TestWatch(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "lock"))
			path := "/usr/sbin/iptables-" + backend
			f := newFirewall6(t, path, ula)
			ctx, cancel := context.WithCancel(t.Context())
			told := make(chan firewall.Change, 100)
			done := make(chan error, 1)
			state := func(n int) (desired firewall.Desired) {
				for i := range n {
					desired.Mappings = append(desired.Mappings, mapping("01A", port.Custom, port.TCP, uint16(10000+i), "10.88.0.2:80"))
				}
				return desired
			}
			if err := f.Set(ctx, state(1)); err != nil {
				t.Fatal(err)
			}
			testutil.Sh(t, path+" -N OTHER")
			go func() {
				done <- f.Watch(ctx, 5*time.Millisecond, func(_ context.Context, change firewall.Change) { told <- change })
			}()
			foreign := func(command string) {
				t.Helper()
				testutil.Sh(t, strings.NewReplacer("$I6", strings.Replace(path, "iptables", "ip6tables", 1), "$I", path).Replace(command))
			}
			next := func(what string) firewall.Change {
				t.Helper()
				select {
				case change := <-told:
					return change
				case <-time.After(time.Minute):
					t.Fatalf("%s: nothing was told", what)
					return firewall.Change{}
				}
			}
			// The subscription may come after the first change: it is made until
			// it is told.
			for subscribed := false; !subscribed; {
				foreign("$I -A RGPU-FWD -s 192.0.2.0/24 -j ACCEPT")
				select {
				case <-told:
					subscribed = true
				case <-time.After(300 * time.Millisecond):
				}
			}
			if _, err := f.Repair(ctx); err != nil {
				t.Fatal(err)
			}
			drain(told)
			for i := range 20 { // ours: added, removed, mended without a difference
				if err := f.Set(ctx, state(1+i%3*300)); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := f.Repair(ctx); err != nil {
				t.Fatal(err)
			}
			if backend == "nft" {
				foreign("$I -A OTHER -j ACCEPT") // theirs, and none of ours
			}
			time.Sleep(200 * time.Millisecond) // long enough for what must not be told
			select {
			case change := <-told:
				t.Errorf("without a change of others: %+v", change)
			default:
			}
			for _, test := range []struct{ what, do string }{
				{"a rule of ours", "$I -t nat -F RGPU-DNAT"},
				{"a hook", "$I -D FORWARD 1"},
				{"a rule replaced by one of the same size", "$I -R RGPU-FWD 2 -o rgpu+ -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"},
				{"a chain renamed", "$I -t nat -E RGPU-TCP-10000 RENAMED"},
				{"all", "$I -t nat -F; $I -t nat -X"},
				{"a rule of IPv6", "$I6 -t nat -F RGPU-DNAT"},
				{"a rule of IPv6 replaced by one of the same size", "$I6 -R RGPU-FWD 2 -o rgpu+ -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"},
			} {
				foreign(test.do)
				change := next(test.what)
				if backend == "nft" && (len(change.By) == 0 || !strings.HasPrefix(change.By[0], "iptables-nft[") && !strings.HasPrefix(change.By[0], "ip6tables-nft")) {
					t.Errorf("%s: by %q", test.what, change.By) // or something of before was told only now
				}
				if mended, err := f.Repair(ctx); err != nil || len(mended) == 0 {
					t.Errorf("%s: mended %v, %v", test.what, mended, err)
				}
				drain(told)
			}
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Watch: %v", err)
			}
			if err := f.CleanUp(t.Context(), firewall.Kept{}); err != nil {
				t.Error(err)
			}
			testutil.Sh(t, path+" -F OTHER; "+path+" -X OTHER; "+path+" -t nat -F; "+path+" -t nat -X")
		})
	}
}

// TestChangeBesideOurs: what others do to legacy tables while a change of ours is
// made is told, too, in the table that is changed and in another.
func TestChangeBesideOurs(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	dir := t.TempDir()
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(dir, "lock"))
	const legacy = "/usr/sbin/iptables-legacy"
	path := filepath.Join(dir, "iptables")
	for twin, script := range map[string]string{
		"": "exec " + legacy + ` "$@"`, "-save": "exec " + legacy + `-save "$@"`,
		"-restore": "if [ -e " + dir + "/before ]; then sh " + dir + "/before; fi\n" + legacy + "-restore \"$@\"\nstatus=$?\n" +
			"if [ -e " + dir + "/after ]; then sh " + dir + "/after; fi\nexit $status",
	} {
		if err := os.WriteFile(path+twin, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	f, ports := newFirewall(t, path), 0
	set := func() { // one port more: the table nat changes
		t.Helper()
		ports++
		var desired firewall.Desired
		for i := range ports {
			desired.Mappings = append(desired.Mappings, mapping("01A", port.Custom, port.TCP, uint16(10000+i), "10.88.0.2:80"))
		}
		if err := f.Set(t.Context(), desired); err != nil {
			t.Fatal(err)
		}
	}
	set()
	told := make(chan firewall.Change, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- f.Watch(ctx, 5*time.Millisecond, func(_ context.Context, change firewall.Change) { told <- change })
	}()
	for _, command := range []string{"-t raw -F RGPU-RAW", "-F FORWARD", "-t nat -F RGPU-POST", "-t nat -I POSTROUTING -j RGPU-POST"} {
		for _, when := range []string{"before", "after"} {
			drain(told)
			file := filepath.Join(dir, when)
			if err := os.WriteFile(file, []byte(legacy+" "+command), 0o600); err != nil {
				t.Fatal(err)
			}
			set()
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			select {
			case <-told:
			case <-time.After(10 * time.Second):
				t.Errorf("%s %s a change of ours is not told", command, when)
			}
			if mended, err := f.Repair(ctx); err != nil || len(mended) == 0 {
				t.Errorf("%s %s a change of ours: mended %v, error %v", command, when, mended, err)
			}
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Watch: %v", err)
	}
}

// drain drops what is told until nothing has been for a while.
func drain(told <-chan firewall.Change) {
	for {
		select {
		case <-told:
		case <-time.After(200 * time.Millisecond):
			return
		}
	}
}

// TestConflicts: what no rule of ours can overrule is told with what to do;
// chains of ours in the other backend go.
func TestConflicts(t *testing.T) {
	onBackends(t, func(t *testing.T, path string) {
		t.Helper()
		other := map[bool]string{true: "/usr/sbin/iptables-legacy", false: "/usr/sbin/iptables-nft"}[strings.HasSuffix(path, "nft")]
		before, f := newFirewall(t, other), newFirewall(t, path)
		desired := firewall.Desired{Mappings: []firewall.Mapping{mapping("01A", port.SSH, port.TCP, 22000, "10.88.0.2:22")}}
		for _, each := range []*firewall.Firewall{before, f} {
			if err := each.Set(t.Context(), desired); err != nil {
				t.Fatal(err)
			}
		}
		conflicts := func(trusted bool) (all []string) {
			t.Helper()
			found, err := f.Conflicts(t.Context(), trusted)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range found {
				if p.Reason != problem.FirewallConflict || p.Hint == "" {
					t.Errorf("conflict %+v", p)
				}
				all = append(all, p.Message+" | "+p.Hint)
			}
			return all
		}
		want := func(what string, got []string, parts ...string) {
			t.Helper()
			if len(parts) == 0 && len(got) > 0 || len(parts) > 0 && len(got) != 1 {
				t.Errorf("%s: %q", what, got)
				return
			}
			for _, part := range parts {
				if !strings.Contains(got[0], part) {
					t.Errorf("%s: %q does not say %q", what, got[0], part)
				}
			}
		}
		want("what an iptables of before left", conflicts(false))
		if rules := testutil.Sh(t, other+"-save"); strings.Contains(rules, "RGPU") {
			t.Errorf("chains of ours are left in the other backend:\n%s", rules)
		}
		same(t, f, kernel(path))
		testutil.Sh(t, other+" -A INPUT -s 192.0.2.1/32 -j ACCEPT")
		want("rules", conflicts(false), "1 rules", filepath.Base(other))
		testutil.Sh(t, other+" -F INPUT; "+other+" -P FORWARD DROP")
		want("the policy", conflicts(false), "DROP", filepath.Base(other)+" -P FORWARD ACCEPT")
		testutil.Sh(t, other+" -P FORWARD ACCEPT")
		testutil.Sh(t, "nft add table inet guard; nft add chain inet guard gate '{ type filter hook forward priority 0; policy drop; }'")
		want("a chain of another table", conflicts(false), "gate", "inet guard", "ct status dnat accept")
		testutil.Sh(t, `nft insert rule inet guard gate ct status dnat accept; nft insert rule inet guard gate ct state established,related accept
			nft insert rule inet guard gate iifname '"rgpu-*"' accept`)
		want("what the hint says was done", conflicts(false))
		testutil.Sh(t, `nft delete table inet guard; nft add table ip last; nft add chain ip last forward '{ type filter hook forward priority 10; }'
			nft add rule ip last forward ct state established accept; nft add rule ip last forward counter reject`)
		want("a last rule that rejects", conflicts(false), "last rule", "ip last")
		testutil.Sh(t, `nft delete table ip last; nft add table inet firewalld; nft add chain inet firewalld gate '{ type filter hook forward priority 10; }'
			nft add rule inet firewalld gate ct state established accept; nft add rule inet firewalld gate ct status dnat accept; nft add rule inet firewalld gate reject`)
		want("firewalld that does not trust us", conflicts(false), "firewall-cmd", "rgpu-+")
		want("firewalld that does", conflicts(true))
		testutil.Sh(t, "nft delete table inet firewalld")
		want("in the end", conflicts(false))
		// What stops IPv6 counts where environments have it.
		testutil.Sh(t, "nft add table ip6 guard; nft add chain ip6 guard gate '{ type filter hook forward priority 0; policy drop; }'")
		want("a chain of IPv6, without", conflicts(false))
		f = newFirewall6(t, path, ula)
		want("a chain of IPv6", conflicts(false), "ip6 guard", "nft insert rule ip6 guard gate")
		testutil.Sh(t, "nft delete table ip6 guard; "+strings.Replace(other, "iptables", "ip6tables", 1)+" -P FORWARD DROP")
		want("the policy of IPv6", conflicts(false), "DROP", "ip6tables")
	})
}

// TestAlternatives: the node stays with its backend when the name iptables is
// made to lead to the other, and says so.
func TestAlternatives(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	testutil.NetNS(t)
	dir := t.TempDir()
	turn := func(backend string) {
		for _, twin := range []string{"", "-save", "-restore"} {
			testutil.Sh(t, fmt.Sprintf("ln -sfn /usr/sbin/iptables-%s%s %s/iptables%s", backend, twin, dir, twin))
		}
	}
	turn("nft")
	f, err := firewall.New(firewall.Config{Subnet: netip.MustParsePrefix("10.88.0.0/16"), Path: dir + "/iptables"})
	if err != nil {
		t.Fatal(err)
	}
	turn("legacy")
	if err := f.Set(t.Context(), firewall.Desired{}); err != nil {
		t.Fatal(err)
	}
	same(t, f, kernel("/usr/sbin/iptables-nft"))
	found, err := f.Conflicts(t.Context(), false)
	if err != nil || len(found) != 1 || !strings.Contains(found[0].Hint, "Restart remotegpud") {
		t.Errorf("conflicts %v, %v", found, err)
	}
}
