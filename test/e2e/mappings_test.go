package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// mappingOnHost is what the tests read of a port mapping.
type mappingOnHost struct {
	ID       string `json:"id"`
	External int    `json:"externalPort"`
	Status   string `json:"status"`
}

func (n *Node) mapping(tb testing.TB, args ...string) (m mappingOnHost) {
	tb.Helper()
	if err := json.Unmarshal([]byte(n.Must(tb, append(args, "-o", "json")...)), &m); err != nil {
		tb.Fatal(err)
	}
	return m
}

// Ports are added to an environment that runs, limited, changed and taken away,
// end by themselves, are held against other programs, and are told of by
// address.
func TestLiveMappings(t *testing.T) {
	// The host has no address yet when the daemon starts.
	n := StartWith(t, usual, func(config string) string { return strings.Replace(config, "127.0.0.1:7443", ":7443", 1) })
	const host, client = "198.51.100.7", "198.51.100.8"
	lan := testutil.NewNamespace(t)
	n.Sh(t, fmt.Sprintf("ip link add up0 type veth peer name lan netns %s; ip addr add %s/24 dev up0; ip link set up0 up; ip route add default via %s", lan.Path(), host, client))
	lan.Sh(t, fmt.Sprintf("ip addr add %s/24 dev lan; ip link set lan up", client))
	n.Must(t, "env", "create", "one", "--image", n.Image, "-p", "ssh", "--", "banner", ":8080", "one")
	started := n.Must(t, "env", "get", "one", "-o", "json")

	m := n.mapping(t, "port", "add", "one", "--internal", "8080", "--description", "notes")
	ask := func() (string, error) {
		return lan.Ask(t, "tcp", fmt.Sprintf("%s:%d", host, m.External), 2*time.Second)
	}
	if answer, err := ask(); err != nil || !strings.HasPrefix(answer, "one ") {
		t.Errorf("the added port answers %q, %v", answer, err)
	}
	// A rule of another tool is known at once to who asks for its port.
	n.Sh(t, "iptables -t nat -A PREROUTING -p tcp --dport 10911 -j DNAT --to-destination "+client+":80")
	if out, errs, code := n.CLI(t, "port", "add", "one", "--internal", "8080", "--external", "10911"); code == 0 || !strings.Contains(errs, "10911") || !strings.Contains(errs, "rule") {
		t.Errorf("the port of another tool's rule: exit %d\n%s%s", code, out, errs)
	}
	if out, errs, code := n.CLI(t, "env", "create", "three", "--image", n.Image, "-p", "10911:8080"); code == 0 || !strings.Contains(errs, "10911") {
		t.Errorf("create with the port of another tool's rule: exit %d\n%s%s", code, out, errs)
	}
	n.Sh(t, "iptables -t nat -D PREROUTING -p tcp --dport 10911 -j DNAT --to-destination "+client+":80")
	mapping := fmt.Sprint(m.External)
	n.Must(t, "port", "update", mapping, "--allow", "203.0.113.0/24,198.51.100.99")
	if answer, err := ask(); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("who is not allowed gets %q, %v, want it refused", answer, err)
	}
	if answer, err := n.Ask(t, m.External); err != nil || !strings.HasPrefix(answer, "one ") {
		t.Errorf("the host itself gets %q, %v", answer, err)
	}
	n.Must(t, "port", "update", m.ID, "--allow", client)
	if answer, err := ask(); err != nil || !strings.HasPrefix(answer, "one ") {
		t.Errorf("who is allowed gets %q, %v", answer, err)
	}
	if out := n.Must(t, "port", "get", mapping); !strings.Contains(out, client+"/32") || !strings.Contains(out, "notes") {
		t.Errorf("port get: %s", out)
	}
	if out := n.Must(t, "env", "get", "one"); !strings.Contains(out, "ssh ssh://me@"+host+":") || !strings.Contains(out, "for "+client+"/32") {
		t.Errorf("env get does not tell where it is reached: %s", out)
	}
	if out := n.Must(t, "node", "info"); !strings.Contains(out, "https://"+host+":7443") {
		t.Errorf("node info does not tell where desktops are: %s", out)
	}
	// Nobody else gets the port, nor is anybody answered there by another way.
	if out, _, code := n.CLI(t, "port", "add", "one", "--internal", "1", "--external", mapping); code != 4 {
		t.Errorf("a port that is held is given out again: exit %d %s", code, out)
	}
	if out := n.Sh(t, fmt.Sprintf("ss -Htlna 'sport = %d'; ss -Htan state listening 'sport = %d'", m.External, m.External)); out != "" {
		t.Errorf("somebody listens on the host port: %s", out)
	}
	if got := n.Sh(t, "cat /proc/sys/net/ipv4/ip_local_reserved_ports"); got != "33890-34889" {
		t.Errorf("reserved ports: %q", got)
	}
	soon := n.mapping(t, "port", "add", "one", "--internal", "8080", "--expires", "1s")
	Eventually(t, "a mapping to end by itself", func() bool {
		return n.mapping(t, "port", "get", soon.ID).Status == "PORT_MAPPING_STATUS_RELEASED"
	})
	if answer, err := lan.Ask(t, "tcp", fmt.Sprintf("%s:%d", host, soon.External), 2*time.Second); err == nil {
		t.Errorf("a mapping that is over answers %q", answer)
	}
	conflicting(t, n, m.External)
	if answer, err := ask(); err != nil || !strings.HasPrefix(answer, "one ") {
		t.Errorf("after the restart the port answers %q, %v", answer, err)
	}

	when := time.Now().UTC().Format(time.RFC3339Nano)
	n.Must(t, "port", "update", mapping, "--allow-default", "--description", "later")
	if out := n.Must(t, "port", "rm", mapping); !strings.Contains(out, "released") {
		t.Errorf("port rm: %s", out)
	}
	if answer, err := ask(); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the removed port answers %q, %v", answer, err)
	}
	if out := n.Must(t, "port", "ls", "--external", mapping, "--at", when); !strings.Contains(out, " one ") || !strings.Contains(out, client+"/32") || !strings.Contains(out, "notes") {
		t.Errorf("who had the port, and for whom it was: %s", out)
	}
	for _, kind := range []string{"port_added", "port_changed", "port_removed"} {
		if out := n.Must(t, "env", "events", "one"); !strings.Contains(out, kind) {
			t.Errorf("no %s among the events: %s", kind, out)
		}
	}
	var before, after struct{ StartedAt string }
	if json.Unmarshal([]byte(started), &before) != nil || json.Unmarshal([]byte(n.Must(t, "env", "get", "one", "-o", "json")), &after) != nil || before != after {
		t.Errorf("it was started anew: %v, %v", before, after)
	}
	if _, errs, code := n.CLI(t, "port", "add", "one", "--internal", "80", "--allow", "2001:db8::/32"); code != 2 || !strings.Contains(errs, "IPv6") {
		t.Errorf("a source that cannot be: exit %d %s", code, errs)
	}
}

// conflicting: what takes the port while the daemon is down is told of, and the
// environment keeps it.
func conflicting(t *testing.T, n *Node, external int) {
	t.Helper()
	n.Stop(t, syscall.SIGTERM)
	n.Network.Answer(t, "tcp", fmt.Sprintf("127.0.0.1:%d", external), "foreign")
	n.Run(t)
	Eventually(t, "the conflict to be told", func() bool {
		return strings.Contains(n.Must(t, "node", "info"), fmt.Sprintf("host port %d/tcp", external))
	})
	if _, errs, _ := n.CLI(t, "env", "get", "one"); !strings.Contains(errs, fmt.Sprintf("host port %d/tcp", external)) {
		t.Errorf("the environment is not warned: %s", errs)
	}
	if log := n.Log(); !strings.Contains(log, "e2e.test") {
		t.Errorf("the log does not name the program")
	}
}
