package network_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

// daemon starts a program and returns what ends it. Its output is shown when
// the test fails.
func daemon(t *testing.T, program string, args ...string) (stop func()) {
	t.Helper()
	output, err := os.CreateTemp(t.TempDir(), filepath.Base(program))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	stop = func() {
		if !ended {
			ended = true
			cmd.Process.Signal(os.Interrupt)
			time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
			cmd.Wait()
		}
	}
	t.Cleanup(func() {
		stop()
		if said, _ := os.ReadFile(output.Name()); t.Failed() {
			t.Logf("%s:\n%s", program, said)
		}
	})
	return stop
}

// systemBus starts a message bus that the process takes for the system's.
func systemBus(t *testing.T) {
	t.Helper()
	// The path of a socket has to be short.
	dir, err := os.MkdirTemp("", "bus") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	address, config := "unix:path="+dir+"/bus", filepath.Join(dir, "bus.conf")
	text := `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
		<busconfig><type>system</type><listen>` + address + `</listen><auth>EXTERNAL</auth>
		<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow receive_sender="*"/><allow own="*"/><allow user="*"/></policy></busconfig>`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon(t, "dbus-daemon", "--config-file="+config, "--nofork", "--nopidfile")
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
	runtimetest.Eventually(t, "the bus is there", func() bool {
		_, err := os.Stat(dir + "/bus")
		return err == nil
	})
}

// TestFirewalld: a firewalld that really runs beside the node, begins, reloads
// and ends, with either of its backends.
func TestFirewalld(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables, testutil.Peers)
	if !testutil.Isolated(t) {
		return
	}
	testutil.Sh(t, "mount -t tmpfs tmpfs /run; mkdir -p /run/lock")
	systemBus(t)
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			config := t.TempDir()
			text := "DefaultZone=public\nFirewallBackend=" + backend + "\nCleanupOnExit=yes\n"
			if err := os.WriteFile(config+"/firewalld.conf", []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			start := func() (stop func()) {
				stop = daemon(t, "firewalld", "--nofork", "--nopid", "--log-target=console", "--system-config="+config)
				runtimetest.Eventually(t, "firewalld runs", func() bool { return exec.CommandContext(t.Context(), "firewall-cmd", "--state").Run() == nil })
				return stop
			}
			l := peopled(t, "nft", func(cfg *network.Config) { cfg.Poll = 20 * time.Millisecond })
			stopNode := run(t, l.networks)
			runtimetest.Eventually(t, "the rules are watched", func() bool { return l.networks.Repairs().Watch != "" })
			stopFirewalld := start()
			trusted := func() bool {
				out, _ := exec.CommandContext(t.Context(), "firewall-cmd", "--zone=trusted", "--list-interfaces").Output()
				return strings.Contains(string(out), "rgpu-+")
			}
			inOrder := func(after string) {
				t.Helper()
				runtimetest.Eventually(t, "firewalld trusts environments after: "+after, trusted)
				l.mended(t, after)
				l.inOrder(t, after)
				if conditions := l.networks.Conditions(); len(conditions) > 0 {
					t.Errorf("%s: conditions %v", after, conditions)
				}
			}
			inOrder("firewalld began")
			testutil.Sh(t, "firewall-cmd --reload")
			inOrder("a reload")
			testutil.Sh(t, "firewall-cmd --complete-reload")
			inOrder("a complete reload")
			stopFirewalld()
			l.mended(t, "firewalld ended")
			l.inOrder(t, "firewalld ended")
			stopFirewalld = start()
			inOrder("firewalld began again")
			stopNode()
			cleanUp(t, l)
			if trusted() {
				t.Error("environments are trusted after the clean-up")
			}
			stopFirewalld()
			if rules := testutil.Sh(t, "nft list ruleset"); strings.Contains(rules, "rgpu-") {
				t.Error(fmt.Sprint("rules of ours are left:\n", rules))
			}
		})
	}
}

// besideContainer runs a container of docker's: what an environment reaches of
// it is what its policy says, by the container's address and by its published
// port, which everybody else reaches as without us.
func besideContainer(t *testing.T, l *lab, docker string) {
	t.Helper()
	testutil.Sh(t, "tar c -C "+filepath.Dir(testutil.TestProgram(t))+" "+filepath.Base(testutil.TestProgram(t))+" | "+docker+"import - neighbour")
	testutil.Sh(t, docker+"run -d --name neighbour -p 18080:80 neighbour /"+filepath.Base(testutil.TestProgram(t))+" banner :80 container")
	defer testutil.Sh(t, docker+"rm -f neighbour")
	container := testutil.Sh(t, docker+"inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' neighbour")
	around, err := netip.MustParseAddr(container).Prefix(16)
	if err != nil {
		t.Fatal(err)
	}
	runtimetest.Eventually(t, "the container answers", func() bool {
		_, err := l.host.Ask(t, "tcp", container+":80", quiet)
		return err == nil
	})
	env := testutil.OpenNamespace(t, l.networks.NetNS("01ENVA"))
	for _, row := range []struct {
		name     string
		policy   policy.Policy
		direct   bool // the container's address is reached
		publicly bool // so is its published port
	}{
		{"egress none", policy.Policy{Egress: policy.None}, false, false},
		{"an allow-list with its network", policy.Policy{Egress: policy.AllowList, Allow: destinations(t, around.String())}, true, false},
		{"an allow-list with the host's address", policy.Policy{Egress: policy.AllowList, Allow: destinations(t, hostIP)}, false, true},
		{"open", policy.Policy{}, false, false}, // its network is a private one
	} {
		declared := policy.Declared{EnvID: "01ENVA", Project: "default", Address: l.networks.Address(0), Policy: row.policy}
		if err := l.networks.SetPolicy(t.Context(), declared); err != nil {
			t.Fatal(err)
		}
		for address, reached := range map[string]bool{container + ":80": row.direct, hostIP + ":18080": row.publicly} {
			if got, err := env.Ask(t, "tcp", address, patience); (err == nil) != reached {
				t.Errorf("%s: the environment asks %s: %q, %v, want it reached: %v", row.name, address, got, err, reached)
			}
		}
		if got, err := l.lan.Ask(t, "tcp", hostIP+":18080", patience); err != nil || !strings.HasPrefix(got, "container") {
			t.Errorf("%s: the LAN asks the container: %q, %v", row.name, got, err)
		}
	}
}

// TestDocker: a docker that really runs beside the node, on either backend of
// iptables: it begins, begins again, and forwards by a policy of DROP.
func TestDocker(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables, testutil.Peers)
	if !testutil.Isolated(t) {
		return
	}
	testutil.Sh(t, "mount -t tmpfs tmpfs /run; mkdir -p /run/lock")
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			dir := t.TempDir()
			bin := filepath.Join(dir, "bin")
			testutil.Sh(t, fmt.Sprintf(`mkdir %[1]s; echo '{}' >%[1]s/daemon.json; for program in iptables ip6tables; do for twin in "" -save -restore; do
				ln -s /usr/sbin/$program-%[2]s$twin %[1]s/$program$twin; done; done`, bin, backend))
			t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			l := peopled(t, backend, func(cfg *network.Config) { cfg.Poll = 20 * time.Millisecond })
			stopNode := run(t, l.networks)
			runtimetest.Eventually(t, "the rules are watched", func() bool { return l.networks.Repairs().Watch != "" })
			for _, what := range []string{"docker began", "docker began again"} {
				stop := daemon(t, "dockerd", "--config-file="+bin+"/daemon.json", "--host=unix://"+bin+"/sock", "--data-root="+dir+"/root",
					"--exec-root=/run/docker-"+backend, "--pidfile=/run/docker.pid", "--storage-driver=vfs", "--exec-opt=native.cgroupdriver=cgroupfs")
				runtimetest.Eventually(t, "docker runs", func() bool {
					return exec.CommandContext(t.Context(), "docker", "--host=unix://"+bin+"/sock", "info").Run() == nil
				})
				if rules := testutil.Sh(t, l.iptables+" -S FORWARD"); !strings.Contains(rules, "DOCKER-USER") {
					t.Errorf("docker is not where it is thought to be:\n%s", rules)
				}
				testutil.Sh(t, l.iptables+" -P FORWARD DROP") // as it does where nobody forwarded before it
				l.mended(t, what)
				l.inOrder(t, what)
				if what == "docker began" {
					besideContainer(t, l, "docker --host=unix://"+bin+"/sock ")
				}
				stop()
			}
			if conditions := l.networks.Conditions(); len(conditions) > 0 {
				t.Errorf("conditions %v", conditions)
			}
			stopNode()
			cleanUp(t, l)
			testutil.Sh(t, "for t in raw nat filter; do "+l.iptables+" -t $t -F; "+l.iptables+" -t $t -X; done; "+l.iptables+" -P FORWARD ACCEPT; ip link del docker0")
		})
	}
}
