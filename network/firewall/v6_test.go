package firewall_test

import (
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network/firewall"
)

// quiet is for how long nothing may come to be taken for blocked.
const quiet = 300 * time.Millisecond

// TestNoIPv6: whatever the settings of a bridge are, what is on it does not
// reach the host by IPv6, and the rule for it is looked after like the others.
func TestNoIPv6(t *testing.T) {
	onBackends(t, func(t *testing.T, path string) {
		t.Helper()
		ip6tables := strings.Replace(path, "iptables", "ip6tables", 1)
		env := testutil.NewNamespace(t)
		testutil.Sh(t, "ip link add rgpu-test type veth peer name eth0 netns "+env.Path()+"; ip link set rgpu-test up; ip addr add fd00::1/64 dev rgpu-test nodad")
		env.Sh(t, "ip link set eth0 up; ip addr add fd00::2/64 dev eth0 nodad")
		listener, err := net.Listen("tcp6", "[fd00::1]:7001")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { listener.Close() })
		reaches := func(patience time.Duration) (err error) {
			env.Do(t, func() {
				var conn net.Conn
				if conn, err = net.DialTimeout("tcp6", "[fd00::1]:7001", patience); err == nil {
					conn.Close()
				}
			})
			return err
		}
		if err := reaches(10 * time.Second); err != nil {
			t.Fatalf("the host has no IPv6 to begin with: %v", err)
		}
		f := newFirewall(t, path)
		if err := f.Set(t.Context(), firewall.Desired{}); err != nil {
			t.Fatal(err)
		}
		if reaches(quiet) == nil {
			t.Error("an environment reaches the host by IPv6")
		}
		if mended, err := f.Repair(t.Context()); err != nil || len(mended) > 0 {
			t.Errorf("Repair after Set mended %v, %v", mended, err)
		}
		for _, damage := range []string{"-t raw -F", "-t raw -I PREROUTING 1 -j ACCEPT", "-t raw -R RGPU-RAW 1 -j ACCEPT"} {
			testutil.Sh(t, ip6tables+" "+damage)
			diff, err := f.Diff(t.Context())
			if _, differs, errCheck := f.Check(t.Context(), firewall.Desired{}); err != nil || errCheck != nil || len(differs) == 0 || !strings.Contains(diff, "raw (IPv6)") {
				t.Errorf("%s: %v, %v, %v, %s", damage, differs, err, errCheck, diff)
			}
			if mended, err := f.Repair(t.Context()); err != nil || !slices.ContainsFunc(mended, func(name string) bool { return strings.HasSuffix(name, "(IPv6)") }) {
				t.Errorf("%s: mended %v, %v", damage, mended, err)
			}
			if diff, err := f.Diff(t.Context()); err != nil || diff != "" {
				t.Errorf("%s: after the repair: %v, %s", damage, err, diff)
			}
		}
		if reaches(quiet) == nil {
			t.Error("an environment reaches the host by IPv6 after a repair")
		}
		if err := f.CleanUp(t.Context(), firewall.Kept{}); err != nil {
			t.Fatal(err)
		}
		if rules := testutil.Sh(t, ip6tables+"-save"); strings.Contains(rules, "RGPU") {
			t.Errorf("rules are left:\n%s", rules)
		}
	})
}
