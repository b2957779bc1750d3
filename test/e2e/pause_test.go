package e2e_test

import (
	"slices"
	"strings"
	"syscall"
	"testing"
)

// webPaused says whether the environment "web" is paused, as people see it.
func (n *Node) webPaused(tb testing.TB) bool {
	tb.Helper()
	return strings.Contains(n.Must(tb, "env", "get", "web"), "stopped (paused)")
}

// greets says whether the first port of an environment greets.
func (n *Node) greets(tb testing.TB, env Environment) bool {
	tb.Helper()
	answer, err := n.Ask(tb, env.Ports[0].External)
	return err == nil && strings.HasPrefix(answer, "hello")
}

// A paused environment stands still, whatever becomes of the daemon and
// containerd, and goes on where it was.
func TestPause(t *testing.T) {
	for _, kind := range either(t) {
		t.Run(string(kind), func(t *testing.T) {
			n := Start(t, kind, "")
			n.Must(t, "env", "create", "web", "--image", n.Image, "-p", "custom:8080", "--restart", "always", "--health-tcp", "8080", "--health-interval", "200ms",
				"--desktop", "--", "banner", ":8080", "hello")
			env := n.Get(t, "web")
			Eventually(t, "it to answer", func() bool { return n.greets(t, env) })
			started := n.care(t, "web").StartedAt

			n.Must(t, "env", "pause", "web")
			if !n.webPaused(t) {
				t.Fatalf("paused: %+v", n.Get(t, "web"))
			}
			if n.greets(t, env) {
				t.Error("a paused environment answers")
			}
			if _, errs, code := n.CLI(t, "env", "exec", "--stdin=false", "web", "--", "testprog", "true"); code == 0 || !strings.Contains(errs, "resume") {
				t.Errorf("a command in a paused environment: exit %d, %s", code, errs)
			}
			if _, errs, code := n.CLI(t, "desktop", "url", "web"); code == 0 || !strings.Contains(errs, "is paused") || !strings.Contains(errs, "env resume web") {
				t.Errorf("the desktop of a paused environment: exit %d, %s", code, errs)
			}
			if _, errs, code := n.CLI(t, "desktop", "wait", "web"); code == 0 || !strings.Contains(errs, "is paused") {
				t.Errorf("waiting for the desktop of a paused environment: exit %d, %s", code, errs)
			}
			if out := n.Must(t, "env", "stats", "web"); !strings.Contains(out, "MiB") && !strings.Contains(out, "KiB") {
				t.Errorf("a paused environment has memory: %s", out)
			}
			// Neither the daemon's death nor containerd's changes that.
			n.Stop(t, syscall.SIGKILL)
			n.Containerd.Kill(t)
			n.Containerd.Start(t)
			n.Run(t)
			if !n.webPaused(t) {
				t.Errorf("after the daemon came back: %+v", n.Get(t, "web"))
			}
			n.Must(t, "env", "resume", "web")
			Eventually(t, "it to go on", func() bool { return n.greets(t, env) })
			Eventually(t, "its health", func() bool { return n.care(t, "web").Health == "HEALTH_HEALTHY" })
			if c := n.care(t, "web"); !c.StartedAt.Equal(started) || c.RestartCount != 0 {
				t.Errorf("it is another run: %+v, want the one of %s", c, started)
			}
			// Others pause and resume it too.
			n.Containerd.Ctr(t, "task", "pause", env.ID)
			Eventually(t, "the pause to be noticed", func() bool { return n.webPaused(t) })
			n.Containerd.Ctr(t, "task", "resume", env.ID)
			Eventually(t, "the end of it to be noticed", func() bool { return n.care(t, "web").State == running })
			want := []string{"created", "started", "paused", "resumed", "paused", "resumed"}
			kinds := slices.DeleteFunc(n.events(t, "web"), func(kind string) bool { return kind == "healthy" || kind == "unhealthy" })
			if !slices.Equal(kinds, want) {
				t.Errorf("events: %v, want %v", kinds, want)
			}
			// Start goes on as well; stop, restart and delete end its process.
			for _, do := range []string{"start", "restart", "stop"} {
				n.Must(t, "env", "pause", "web")
				n.Must(t, "env", do, "web")
				if do == "stop" {
					break
				}
				Eventually(t, "it to answer after "+do, func() bool { return n.greets(t, env) })
			}
			if c := n.care(t, "web"); c.State != "ENVIRONMENT_STATE_STOPPED" || n.webPaused(t) {
				t.Errorf("stopped: %+v", c)
			}
			n.Must(t, "env", "start", "web")
			n.Must(t, "env", "pause", "web")
			if _, errs, code := n.CLI(t, "env", "rm", "web"); code == 0 || !strings.Contains(errs, "paused") {
				t.Errorf("deleting a paused environment: exit %d, %s", code, errs)
			}
			n.Must(t, "env", "rm", "--force", "web")
			n.NothingLeft(t)
		})
	}
}

// The host is rebooted while an environment is paused: its process is gone,
// and no policy brings another one.
func TestRebootWhilePaused(t *testing.T) {
	n := Start(t, "containerd", "")
	n.Must(t, "env", "create", "web", "--image", n.Image, "-p", "custom:8080", "--restart", "always", "--", "banner", ":8080", "hello")
	env := n.Get(t, "web")
	n.Must(t, "env", "pause", "web")
	n.Stop(t, syscall.SIGKILL)
	n.Containerd.Reboot(t, func() { n.wipe(t) })
	n.Run(t)
	got := n.Get(t, "web")
	if got.State != "ENVIRONMENT_STATE_ERROR" || got.Problem == nil || got.Problem.Reason != "HOST_REBOOTED" || n.webPaused(t) {
		t.Errorf("after the reboot: %+v %+v", got, got.Problem)
	}
	n.Must(t, "env", "start", "web")
	Eventually(t, "it to answer", func() bool { return n.greets(t, env) })
}
