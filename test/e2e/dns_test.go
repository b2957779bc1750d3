package e2e_test

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// Environments have names: on the LAN, inside of other environments of their
// project, and nowhere any more once they are gone. What is added through the
// command line is served when that returns, and survives the daemon.
func TestNames(t *testing.T) {
	if _, err := exec.LookPath("dig"); err != nil {
		testutil.Require(t, testutil.Root) // skipped, unless it is meant to run
		t.Fatal("dig is not installed: run deploy/dev/packages.sh test")
	}
	const host, lanAddress = "198.51.100.7", "198.51.100.8"
	var lan *testutil.Namespace
	n := StartAs(t, usual, func(config string) string {
		return config + fmt.Sprintf("[dns]\nlisten = [%q]\nallow = [\"198.51.100.0/24\"]\n[[dns.zones]]\nname = \"env.example.com\"\nns = [\"ns1.example.com\"]\n", host)
	}, func(n *Node) {
		lan = testutil.NewNamespace(t)
		n.Sh(t, fmt.Sprintf("ip link add uplink0 type veth peer name lan netns %s; ip addr add %s/24 dev uplink0; ip link set uplink0 up", lan.Path(), host))
		lan.Sh(t, fmt.Sprintf("ip addr add %s/24 dev lan; ip link set lan up", lanAddress))
	})
	n.Must(t, "env", "create", "one", "--image", n.Image, "-p", "ssh", "-p", "custom:8080", "--", "banner", ":8080", "one")
	n.Must(t, "env", "create", "two", "--image", n.Image)
	n.Must(t, "--project", "lab", "env", "create", "alien", "--image", n.Image)
	one, two := n.Get(t, "one"), n.Get(t, "two")
	ports := map[string]int{}
	for _, mapping := range one.Ports {
		ports[mapping.Service] = mapping.External
	}
	node := strings.TrimSuffix(two.Address, strings.TrimPrefix(two.Address, "10.88.")) + "0.1"
	inside := testutil.OpenNamespace(t, filepath.Join(n.Dir, "run", "netns", two.ID))
	// dig prints the status and the answers, sorted.
	dig := func(from *testutil.Namespace, server, question string) string {
		t.Helper()
		out := from.Sh(t, "dig +nocmd +noall +comments +answer +tries=3 +time=5 @"+server+" "+question)
		var found []string
		for line := range strings.Lines(out) {
			fields := strings.Fields(line)
			switch {
			case strings.Contains(line, "status: "):
				_, rest, _ := strings.Cut(line, "status: ")
				status, _, _ := strings.Cut(rest, ",")
				found = append(found, status)
			case len(fields) > 4 && !strings.HasPrefix(line, ";"):
				found = append(found, strings.Join(fields[3:], " "))
			}
		}
		slices.Sort(found)
		return strings.Join(found, "; ")
	}
	check := func(when string, rows [][4]string) {
		t.Helper()
		for _, row := range rows {
			from, server := lan, host
			if row[1] == "env" {
				from, server = inside, node
			}
			if got := dig(from, server, row[2]); got != row[3] {
				t.Errorf("%s: %s: dig %s: %q, want %q", when, row[0], row[2], got, row[3])
			}
		}
	}
	check("created", [][4]string{
		{"a name on the LAN", "lan", "one.gpu.internal A", "A " + host + "; NOERROR"},
		{"in full", "lan", "one.default.gpu.internal A", "A " + host + "; NOERROR"},
		{"in the other zone", "lan", "one.env.example.com A", "A " + host + "; NOERROR"},
		{"over TCP", "lan", "+tcp one.gpu.internal A", "A " + host + "; NOERROR"},
		{"below it", "lan", "any.thing.one.gpu.internal A", "A " + host + "; NOERROR"},
		{"no IPv6", "lan", "one.gpu.internal AAAA", "NOERROR"},
		{"SSH", "lan", "_ssh._tcp.one.gpu.internal SRV", fmt.Sprintf("NOERROR; SRV 0 0 %d one.gpu.internal.", ports["SERVICE_TYPE_SSH"])},
		{"a port", "lan", "_port8080._tcp.one.gpu.internal SRV", fmt.Sprintf("NOERROR; SRV 0 0 %d one.gpu.internal.", ports["SERVICE_TYPE_CUSTOM"])},
		{"its address", "lan", "-x " + one.Address, "NOERROR; PTR one.gpu.internal."},
		{"another project", "lan", "alien.lab.gpu.internal A", "A " + host + "; NOERROR"},
		{"nobody", "lan", "absent.gpu.internal A", "NXDOMAIN"},
		{"others' names", "lan", "www.example.org A", "REFUSED"},
		{"inside", "env", "one.gpu.internal A", "A " + node + "; NOERROR"},
		{"inside, over TCP", "env", "+tcp one.gpu.internal A", "A " + node + "; NOERROR"},
		{"another project inside", "env", "alien.lab.gpu.internal A", "NXDOMAIN"},
		{"another project's address inside", "env", "-x " + node, "NOERROR; PTR ns.gpu.internal."},
		{"others' names inside, with name servers that do not answer", "env", "www.example.org A", "SERVFAIL"},
	})
	// With what is in its resolv.conf an environment reaches another's port.
	if out := n.Must(t, "env", "exec", "--stdin=false", "two", "--", "testprog", "dial", fmt.Sprintf("one:%d", ports["SERVICE_TYPE_CUSTOM"])); !strings.Contains(out, "one "+node[:6]) {
		t.Errorf("one, by name: %q", out)
	}
	if out := n.Must(t, "env", "exec", "--stdin=false", "two", "--", "cat", "/etc/resolv.conf"); !strings.Contains(out, "nameserver "+node) || !strings.Contains(out, "search gpu.internal") {
		t.Errorf("resolv.conf: %s", out)
	}

	n.Must(t, "dns", "add", "one", "www")
	n.Must(t, "dns", "add", "one", "db.one", "a", "192.0.2.10", "--ttl", "60")
	n.Must(t, "dns", "add", "one", "@", "txt", "two words")
	var list struct {
		Records []struct{ ID, Name, Type, Data, Source string }
	}
	if err := json.Unmarshal([]byte(n.Must(t, "dns", "ls", "--source", "user", "-o", "json")), &list); err != nil || len(list.Records) != 3 {
		t.Fatalf("dns ls: %+v %v", list, err)
	}
	if out := n.Must(t, "dns", "ls", "--env", "one"); !strings.Contains(out, "_ssh._tcp.one") || !strings.Contains(out, one.Address) {
		t.Errorf("dns ls: %s", out)
	}
	added := [][4]string{
		{"an alias", "lan", "www.gpu.internal A", "A " + host + "; CNAME one.gpu.internal.; NOERROR"},
		{"an alias inside", "env", "www.gpu.internal A", "A " + node + "; CNAME one.gpu.internal.; NOERROR"},
		{"an address", "lan", "db.one.gpu.internal A", "A 192.0.2.10; NOERROR"},
		{"and nothing else there", "lan", "x.db.one.gpu.internal A", "NXDOMAIN"},
	}
	check("added", added)
	for _, test := range []struct {
		code int
		argv []string
	}{
		{4, []string{"dns", "add", "one", "two"}},
		{4, []string{"dns", "add", "two", "www"}},
		{4, []string{"dns", "add", "one", "@"}},
		{4, []string{"dns", "add", "one", "db.one", "a", "192.0.2.10"}},
		{2, []string{"dns", "add", "one", "www.example.org."}},
		{2, []string{"dns", "add", "one", "www.two", "a", "192.0.2.1"}},
		{2, []string{"dns", "add", "one", "x.one", "a", "2001:db8::1"}},
		{2, []string{"dns", "add", "one", "x.one", "mx", "x"}},
		{3, []string{"dns", "add", "absent", "x"}},
		{3, []string{"dns", "rm", "01JD000000000000000000000A"}},
		{4, []string{"env", "create", "www", "--image", n.Image}},
		{4, []string{"env", "rename", "two", "www"}},
	} {
		if out, errs, code := n.CLI(t, test.argv...); code != test.code {
			t.Errorf("remotegpu %s: exit %d, want %d\n%s%s", strings.Join(test.argv, " "), code, test.code, out, errs)
		}
	}
	n.Stop(t, syscall.SIGKILL)
	n.Run(t)
	check("after the daemon was killed", added)
	n.Must(t, "env", "rename", "one", "uno")
	check("renamed", [][4]string{
		{"the new name", "lan", "uno.gpu.internal A", "A " + host + "; NOERROR"},
		{"the old name", "lan", "one.gpu.internal A", "NXDOMAIN"},
		{"the alias follows", "env", "www.gpu.internal A", "A " + node + "; CNAME uno.gpu.internal.; NOERROR"},
		{"what is below follows", "lan", "db.uno.gpu.internal A", "A 192.0.2.10; NOERROR"},
	})
	for _, record := range list.Records {
		if record.Name == "db.one" {
			if out := n.Must(t, "dns", "rm", record.ID, "-o", "json"); out != "{\"id\":\""+record.ID+"\"}\n" {
				t.Errorf("rm: %s", out)
			}
		}
	}
	check("removed", [][4]string{{"the wildcard again", "lan", "db.uno.gpu.internal A", "A " + host + "; NOERROR"}})
	n.Must(t, "env", "rm", "--force", "--grace", "0s", "uno")
	check("deleted", [][4]string{
		{"the name", "lan", "uno.gpu.internal A", "NXDOMAIN"},
		{"the alias", "lan", "www.gpu.internal A", "NXDOMAIN"},
		{"inside", "env", "uno.gpu.internal A", "NXDOMAIN"},
		{"its address", "lan", "-x " + one.Address, "NXDOMAIN"},
		{"the other", "lan", "two.gpu.internal A", "A " + host + "; NOERROR"},
	})
	if out := n.Must(t, "dns", "ls", "--source", "user"); strings.Contains(out, "www") {
		t.Errorf("records of a deleted environment: %s", out)
	}
}
