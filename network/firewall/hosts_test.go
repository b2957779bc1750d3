package firewall_test

import (
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/firewall/firewalltest"
)

// host is where rules are: a backend of the kernel's in a namespace of the test's
// own, or what stands for it.
type host struct {
	path      string // of the kernel's iptables; "": there is none
	four, six *firewalltest.Tables
}

// kernel is a host by its iptables.
func kernel(path string) *host { return &host{path: path} }

// onHosts runs a test on the stand-in and on each backend of iptables.
func onHosts(t *testing.T, test func(t *testing.T, h *host)) {
	t.Helper()
	t.Run("stand-in", func(t *testing.T) { test(t, &host{four: new(firewalltest.Tables), six: new(firewalltest.Tables)}) })
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			testutil.Require(t, testutil.Root, testutil.IPTables)
			t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "lock"))
			testutil.NetNS(t)
			test(t, kernel("/usr/sbin/iptables-"+backend))
		})
	}
}

// onBackends runs a test on each backend of iptables, in a namespace of its
// own.
func onBackends(t *testing.T, test func(t *testing.T, path string)) {
	t.Helper()
	testutil.Require(t, testutil.Root, testutil.IPTables)
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "lock"))
			testutil.NetNS(t)
			test(t, "/usr/sbin/iptables-"+backend)
		})
	}
}

// firewall is a process that begins on the host; range6 may be invalid.
func (h *host) firewall(t *testing.T, range6 netip.Prefix) *firewall.Firewall {
	t.Helper()
	cfg := firewall.Config{Subnet: netip.MustParsePrefix("10.88.0.0/16"), Subnet6: range6, Path: h.path}
	if h.path == "" {
		cfg.Tables, cfg.Tables6 = h.four, h.six
	}
	f, err := firewall.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// program is the iptables of an address family, for its twins.
func (h *host) program(six bool) string {
	if six {
		return strings.Replace(h.path, "iptables", "ip6tables", 1)
	}
	return h.path
}

func (h *host) tables(six bool) *firewalltest.Tables {
	if six {
		return h.six
	}
	return h.four
}

// save is what iptables-save prints.
func (h *host) save(t *testing.T, six bool) string {
	t.Helper()
	var text []byte
	var err error
	if h.path != "" {
		text, err = exec.CommandContext(t.Context(), h.program(six)+"-save").Output()
	} else {
		text, err = h.tables(six).Save(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// restore runs a script through iptables-restore --noflush.
func (h *host) restore(t *testing.T, six bool, script string) error {
	t.Helper()
	if h.path == "" {
		return h.tables(six).Restore(t.Context(), script)
	}
	cmd := exec.CommandContext(t.Context(), h.program(six)+"-restore", "--noflush")
	cmd.Stdin = strings.NewReader(script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Logf("%s", out)
	}
	return err
}

// run runs commands as somebody else does, each "TABLE COMMAND", one by one.
func (h *host) run(t *testing.T, six bool, commands ...string) {
	t.Helper()
	for _, command := range commands {
		table, line, _ := strings.Cut(command, " ")
		if err := h.restore(t, six, "*"+table+"\n"+line+"\nCOMMIT\n"); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
	}
}

// rules are those of one chain, in order.
func (h *host) rules(t *testing.T, six bool, chain string) (rules []string) {
	t.Helper()
	for line := range strings.Lines(h.save(t, six)) {
		if rule, ok := strings.CutPrefix(strings.TrimSpace(line), "-A "+chain+" "); ok {
			rules = append(rules, rule)
		}
	}
	return rules
}
