//nolint:thelper // steps of one test: a failure should name their lines
package vm_test

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// suites run in the machine because the kernel, its cgroup v2 and systemd are
// other than the host's.
var suites = []suite{
	{"internal/cgroup", ""},
	{"gpu/mps", ""},
	{"internal/projectquota", "TestLimit"},
	{"runtime/containerd", "^(TestSpec|TestDiskQuota|TestUpdateReachesTheKernel|TestGPUDevices|TestGPUMemory|TestPausedWhenContainerdOrShimIsKilled)$"},
	{"test/e2e", "TestStats"},
}

// TestNode is the life of one node on one machine, in order: each step finds
// what those before have left.
func TestNode(t *testing.T) {
	testutil.Require(t, testutil.VM, testutil.Programs, testutil.Containerd2)
	m := Boot(t)
	m.install(t)
	for _, step := range []struct {
		name string
		run  func(*testing.T, *Machine)
	}{
		{"Limits", limits}, {"Memory", outOfMemory}, {"Services", services}, {"Reboot", reboot}, {"PowerLoss", powerLoss}, {"Leftovers", leftovers},
	} {
		ok := t.Run(step.name, func(t *testing.T) {
			defer func() {
				if t.Failed() && m.client != nil {
					out, _, err := m.try("journalctl --no-pager -b -n 80 -u remotegpud -u containerd -o short-precise; remotegpu env ls; remotegpu op ls; for id in $(remotegpu env ls -q); do remotegpu env events $id; done")
					t.Logf("%v\n%s", err, out)
				}
			}()
			step.run(t, m)
		})
		if !ok {
			return
		}
	}
	for _, s := range suites {
		t.Run(s.name(), func(t *testing.T) { m.runSuite(t, s) })
	}
}

// Limits are where the kernel keeps them, in force, and stay so whatever
// systemd does to the tree that it thinks its own.
func limits(t *testing.T, m *Machine) {
	if info := m.CLI(t, "node", "info"); !strings.Contains(info, "v2") || !strings.Contains(info, "containerd:") {
		t.Errorf("node info: %s", info)
	}
	env := m.Create(t, "limited", []string{"--cpus", "0.5", "--memory", "64MiB", "--pids", "40"}, "burn")
	group := "/sys/fs/cgroup/remotegpu/" + env.ID
	check := func(when string) {
		t.Helper()
		for file, want := range map[string]string{
			"cpu.max": "50000 100000", "memory.max": "67108864", "memory.swap.max": "0", "pids.max": "40",
		} {
			if got := m.Sh(t, "cat "+group+"/"+file); got != want {
				t.Errorf("%s: %s is %q, want %q", when, file, got, want)
			}
		}
		for _, parent := range []string{"", "/remotegpu"} {
			set := strings.Fields(m.Sh(t, "cat /sys/fs/cgroup"+parent+"/cgroup.subtree_control"))
			for _, controller := range []string{"cpu", "io", "memory", "pids"} {
				if !slices.Contains(set, controller) {
					t.Errorf("%s: %q delegates %v, not %s", when, parent, set, controller)
				}
			}
		}
	}
	check("at first")
	// A unit that needs a controller comes and goes, after which systemd takes
	// what it does not need from the root.
	m.Sh(t, "systemd-run --quiet --wait -p CPUQuota=50% -p IOWeight=50 -p MemoryMax=100M true; systemctl daemon-reload; systemctl daemon-reexec")
	check("after systemd has looked over its tree")
	eventually(t, "the processor to be withheld", func() bool {
		throttled, _ := strconv.Atoi(m.Sh(t, "grep -oP '^nr_throttled \\K.*' "+group+"/cpu.stat"))
		return throttled > 10
	})
	// What is told is what the kernel counts.
	var answer struct {
		Stats []struct {
			CPU    int64 `json:"cpuNanos,string"`
			Memory int64 `json:"memoryUsageBytes,string"`
			Set    int64 `json:"memoryWorkingSetBytes,string"`
			Limit  int64 `json:"memoryLimitBytes,string"`
			Pids   int64 `json:"pids,string"`
		} `json:"stats"`
	}
	used := func() int64 {
		micros, err := strconv.ParseInt(m.Sh(t, "grep -oP '^usage_usec \\K.*' "+group+"/cpu.stat"), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return micros * 1000
	}
	before := used()
	m.Read(t, &answer, "env", "stats", "limited")
	after := used()
	if len(answer.Stats) != 1 {
		t.Fatalf("stats: %+v", answer)
	}
	s := answer.Stats[0]
	if s.CPU < before || s.CPU > after || s.Limit != 64<<20 || s.Memory <= 0 || s.Memory > 64<<20 || s.Set <= 0 || s.Set > s.Memory || s.Pids < 1 || s.Pids > 40 {
		t.Errorf("stats: %+v; the processor was used for %d to %d", s, before, after)
	}
	m.CLI(t, "env", "rm", "--force", "--grace", "0s", "limited")
	m.Sh(t, "test ! -e "+group)

	// In an environment that does nothing: a program at work may want a thread
	// while there is none to be had, and end.
	crowded := m.Create(t, "crowded", []string{"--pids", "40"}, "sleep")
	if out, _, err := m.try("remotegpu env exec --stdin=false crowded -- testprog fork 200"); err != nil || !strings.Contains(out, "temporarily unavailable") {
		t.Errorf("200 processes of 40: %v\n%s", err, out)
	}
	eventually(t, "the children to end", func() bool { return m.Sh(t, "cat /sys/fs/cgroup/remotegpu/"+crowded.ID+"/pids.current") != "40" })
	m.CLI(t, "env", "rm", "--force", "--grace", "0s", "crowded")
}

// A process that takes more than its limit is killed, which is told, and takes
// nobody with it. When the host itself runs out, environments go before its
// services: they have not got the score that protects containerd.
func outOfMemory(t *testing.T, m *Machine) {
	if score := m.Sh(t, "cat /proc/$(systemctl show -P MainPID containerd)/oom_score_adj"); score != "-999" {
		t.Fatalf("containerd's own score is %s: this test needs a unit that protects it", score)
	}
	hungry := []string{"env", "create", "hungry", "--image", "remotegpu/test", "--memory", "40MiB", "--restart", "on-failure:1", "--", "eat-memory", "209715200"}
	_, _, _ = m.try("remotegpu " + quote(hungry)) // it may be killed before it counts as running
	eventually(t, "it to give up", func() bool {
		env := m.Get(t, "hungry")
		return env.State == failed && env.RestartCount == 1 && env.Operation == "" && slices.Contains(m.Events(t, "hungry"), "oom")
	})
	if env := m.Get(t, "hungry"); env.Exit == nil || !env.Exit.OOM {
		t.Errorf("exit: %+v", env.Exit)
	}
	m.CLI(t, "env", "rm", "hungry")
	m.Create(t, "scored", nil, "sleep")
	for _, process := range []string{"1", "self"} {
		if score := m.Exec(t, "scored", "cat", "/proc/"+process+"/oom_score_adj"); score != "0" {
			t.Errorf("score of process %s inside: %s, want 0", process, score)
		}
	}
	m.CLI(t, "env", "rm", "--force", "--grace", "0s", "scored")
	for _, unit := range []string{"containerd", "remotegpud"} {
		if count := m.Sh(t, "systemctl show -P NRestarts "+unit); count != "0" {
			t.Errorf("%s was restarted %s times", unit, count)
		}
	}
}

// Environments and log writers live through every restart of the services, and
// what happens afterwards is noticed.
func services(t *testing.T, m *Machine) {
	env := m.Create(t, "steady", []string{"--restart", "always", "-p", "custom:8080"}, "banner", ":8080", "steady")
	ticker := m.Create(t, "ticker", nil, "tick")
	before := m.processes(t, env) + m.processes(t, ticker)
	if others := m.Sh(t, "for p in $(cat /sys/fs/cgroup/system.slice/remotegpud.service/cgroup.procs); do cat /proc/$p/comm 2>/dev/null || true; done | sort -u"); others != "remotegpud" {
		t.Errorf("the daemon's unit holds %q: what a stop of it kills by KillMode=control-group", others)
	}
	for _, restart := range []string{
		"systemctl restart remotegpud", "systemctl kill -s KILL remotegpud", "systemctl restart containerd", "systemctl kill --kill-whom=main -s KILL containerd",
		"systemctl daemon-reload", "systemctl restart containerd remotegpud",
	} {
		m.Sh(t, restart)
		m.serves(t)
		eventually(t, "containerd after "+restart, func() bool {
			out, code, err := m.try("remotegpu env exec --stdin=false steady -- testprog echo inside")
			return err == nil && code == 0 && out == "inside"
		})
		if after := m.processes(t, env) + m.processes(t, ticker); after != before {
			t.Errorf("after %s processes are %q, before %q", restart, after, before)
		}
		if !m.Answers(env, "steady") {
			t.Errorf("after %s its port does not answer", restart)
		}
	}
	// Not a line was lost.
	lines := strings.Fields(m.Sh(t, "remotegpu env logs ticker | grep -oP '^tick \\K.*'"))
	for i, line := range lines {
		if line != strconv.Itoa(i+1) {
			t.Fatalf("line %d of the log is tick %s", i+1, line)
		}
	}
	// An exit is noticed by the daemon that came last.
	m.Sh(t, "kill -9 $(cat /sys/fs/cgroup/remotegpu/"+env.ID+"/cgroup.procs)")
	eventually(t, "its restart", func() bool {
		now := m.Get(t, "steady")
		return now.State == running && now.RestartCount == 1 && m.Answers(now, "steady")
	})
	m.CLI(t, "env", "rm", "--force", "--grace", "0s", "steady")
	m.CLI(t, "env", "rm", "--force", "--grace", "0s", "ticker")
}

// policies are the environments of the two boots after the first, by name: the
// policy, "stopped" for always and a stop.
var policies = []string{"no", "on-failure", "always", "unless-stopped", "stopped"}

// comesBack are those that a boot starts again.
var comesBack = []string{"on-failure", "always", "unless-stopped"}

// The host is rebooted: all processes and namespaces are gone, and everything
// comes back as its policy says, with address, ports, volumes and files.
func reboot(t *testing.T, m *Machine) {
	envs := make(map[string]Environment)
	for _, name := range policies {
		policy := strings.Replace(name, "stopped", "always", 1)
		if name == "unless-stopped" {
			policy = name
		}
		envs[name] = m.Create(t, name, []string{"--restart", policy, "-p", "custom:8080", "-v", "data:/data", "--tmpfs", "/scratch"}, "banner", ":8080", name)
		m.Exec(t, name, "write", "/kept", "by "+name, ";", "write", "/data/"+name, "volume")
	}
	// It says farewell when it is told to end, which a host that goes down must do.
	m.Create(t, "polite", nil, "sleep", ";", "write", "/farewell", "said")
	m.CLI(t, "env", "stop", "stopped")
	m.Reboot(t)
	m.serves(t)
	m.cameBack(t, envs, 1)
	env := m.Get(t, "no")
	if env.State != failed || env.Problem == nil || env.Problem.Reason != "HOST_REBOOTED" {
		t.Errorf("without a policy: %+v %+v", env, env.Problem)
	}
	m.CLI(t, "env", "start", "no")
	if out := m.Exec(t, "no", "cat", "/kept", ";", "echo", "", ";", "cat", "/data/always"); out != "by no\nvolume" {
		t.Errorf("files of no: %q", out)
	}
	m.Sh(t, "test -n \"$(find /var/lib/containerd -path '*/fs/farewell')\"")
	m.CLI(t, "env", "rm", "polite")
	// Nothing had to be waited for: systemd says so on the console.
	m.noneWaited(t)
}

// cameBack checks what a boot started again and what it left alone.
func (m *Machine) cameBack(t *testing.T, envs map[string]Environment, boots int) {
	t.Helper()
	for _, name := range comesBack {
		before := envs[name]
		eventually(t, name+" to come back", func() bool {
			now := m.Get(t, name)
			return now.State == running && now.Operation == "" && m.Answers(before, name)
		})
		after := m.Get(t, name)
		if after.ID != before.ID || after.Address != before.Address || after.Ports[0] != before.Ports[0] {
			t.Errorf("%s was %+v and came back as %+v", name, before, after)
		}
		if kinds := m.Events(t, name); after.RestartCount < 1 || !slices.Contains(kinds, "restarting") {
			t.Errorf("%s: restarted %d times, %v", name, after.RestartCount, kinds)
		}
		if out := m.Exec(t, name, "cat", "/kept", ";", "echo", "", ";", "cat", "/data/"+name); out != "by "+name+"\nvolume" {
			t.Errorf("files of %s: %q", name, out)
		}
		if limit := m.Sh(t, "cat /sys/fs/cgroup/remotegpu/"+after.ID+"/pids.max"); limit != "4096" {
			t.Errorf("limit of %s: %s", name, limit)
		}
	}
	if now := m.Get(t, "stopped"); now.State != stopped || now.RestartCount != 0 {
		t.Errorf("what somebody stopped, after %d boots: %+v", boots, now)
	}
}

// The machine loses its power while environments are made: database and
// containerd's own come up, what was there comes back, what was on its way is
// finished or given back.
func powerLoss(t *testing.T, m *Machine) {
	envs := make(map[string]Environment)
	for _, env := range m.List(t) {
		envs[env.Name] = env
	}
	m.Sh(t, "sync") // what is younger may be lost, which is no business of ours
	m.Sh(t, "nohup sh -c 'for i in $(seq 100); do remotegpu env create new-$i --image remotegpu/test --restart always -p custom:8080 -- banner :8080 new; done' >/dev/null 2>&1 &")
	eventually(t, "two to be made", func() bool { return len(m.List(t)) >= len(envs)+2 })
	m.Reset(t)
	m.serves(t)
	m.cameBack(t, envs, 2)
	if env := m.Get(t, "no"); env.State != failed || env.Problem == nil || env.Problem.Reason != "HOST_REBOOTED" {
		t.Errorf("without a policy: %+v %+v", env, env.Problem)
	}
	for _, env := range m.List(t) {
		if !strings.HasPrefix(env.Name, "new-") {
			continue
		}
		eventually(t, env.Name+" to be done", func() bool {
			now := m.Get(t, env.Name)
			return now.Operation == "" && (now.State == failed || now.State == running && m.Answers(now, "new"))
		})
		t.Logf("%s: %s", env.Name, m.Get(t, env.Name).State)
	}
	m.CLI(t, "env", "logs", "always")
	// A page of the database that was half written would show here.
	m.Sh(t, "remotegpud backup /root/node.db; test -s /root/node.db")
	env := m.Create(t, "after", []string{"-p", "custom:8080"}, "banner", ":8080", "after")
	eventually(t, "a new one to answer", func() bool { return m.Answers(env, "after") })
}

// Everything is deleted: nothing is left on the host. What was made in the
// moments before the power was lost may be known to containerd alone: it is
// reported, and removed as docs/operations.md says.
func leftovers(t *testing.T, m *Machine) {
	for _, env := range m.List(t) {
		m.CLI(t, "env", "rm", "--force", "--grace", "0s", env.ID)
	}
	strangers := strings.Fields(m.Sh(t, "ctr -n remotegpu containers ls -q"))
	reported := func() bool { return strings.Contains(m.CLI(t, "node", "info"), "CONTAINER_UNKNOWN") }
	if len(strangers) > 0 {
		t.Logf("unknown after the loss of power: %v", strangers)
		eventually(t, "them to be reported", reported)
		m.Sh(t, "ctr -n remotegpu containers rm "+quote(strangers))
	}
	eventually(t, "nothing to be left", func() bool {
		out := m.Sh(t, `cd /run/remotegpu; ls netns mounts desktop /var/lib/remotegpu/environments 2>/dev/null | grep '^0' || true
			ctr -n remotegpu containers ls -q; ctr -n remotegpu tasks ls -q; ctr -n remotegpu snapshots ls | tail -n +2 | grep -v Committed || true
			find /sys/fs/cgroup/remotegpu -mindepth 1 -type d 2>/dev/null || true; ip -br link | grep rgpu || true; iptables-save | grep to-destination || true
			pgrep -af 'containerd-[s]him|remotegpu-[l]ogwriter' || true`)
		if out != "" {
			t.Logf("left: %s", out)
		}
		return out == "" && !reported()
	})
	if info := m.CLI(t, "node", "info"); strings.Contains(info, "Problem") {
		t.Errorf("node info: %s", info)
	}
	if out := m.Sh(t, "systemctl --failed --no-legend; systemctl is-active containerd remotegpud"); out != "active\nactive" {
		t.Errorf("units: %s", out)
	}
}

// noneWaited checks that the last shutdown had nobody to wait for: systemd
// names on the console whom it waits for before it kills.
func (m *Machine) noneWaited(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(m.console())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "Sending SIGTERM to remaining processes") {
		t.Error("the console shows no shutdown")
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "Waiting for process") {
			t.Errorf("the shutdown waited: %s", line)
		}
	}
}
