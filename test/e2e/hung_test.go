package e2e_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// shimOf is the process of the shim that runs a container.
func shimOf(t *testing.T, id string) int {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range lines {
		line, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(line, []byte("containerd-shim-runc")) || !bytes.Contains(line, []byte("-id\x00"+id+"\x00")) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	t.Fatalf("no shim of %s", id)
	return 0
}

// As many environments as there are workers have a shim that does not answer,
// and are stopped, restarted or deleted: they hold up no other environment, and
// what was asked for is done once the shims go on.
func TestHungShimsHoldUpNobody(t *testing.T) {
	for _, kind := range either(t) {
		t.Run(string(kind), func(t *testing.T) {
			n := Start(t, kind, "[operations]\nworkers = 2\n")
			hung := []string{"stopped", "restarted", "deleted"}
			var shims []int
			goOn := func() {
				for _, shim := range shims {
					_ = syscall.Kill(shim, syscall.SIGCONT) // it may have been killed by now
				}
			}
			defer goOn()
			for _, name := range hung {
				n.Must(t, "env", "create", name, "--image", n.Image)
				shims = append(shims, shimOf(t, n.Get(t, name).ID))
			}
			for _, shim := range shims {
				if err := syscall.Kill(shim, syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
			}
			ops := make(map[string]string)
			for name, args := range map[string][]string{
				"stopped": {"stop", "stopped"}, "restarted": {"restart", "restarted"}, "deleted": {"rm", "--force", "deleted"},
			} {
				var answer struct{ ID, Operation string } // an environment, or the operation that deletes it
				out := n.Must(t, append(append([]string{"--output", "json", "env"}, args...), "--no-wait")...)
				if err := json.Unmarshal([]byte(out), &answer); err != nil || answer.ID == "" {
					t.Fatalf("%q answers %v: %s", args, err, out)
				}
				ops[name] = cmp.Or(answer.Operation, answer.ID)
			}
			Eventually(t, "workers to be held", func() bool {
				begun := 0
				for _, id := range ops {
					if n.operation(t, id).State == "OPERATION_STATE_RUNNING" {
						begun++
					}
				}
				return begun >= 2
			})
			n.Must(t, "env", "create", "other", "--image", n.Image)
			created := n.Get(t, "other")
			n.Must(t, "env", "stop", "other")
			n.Must(t, "env", "start", "other")
			n.Must(t, "env", "rm", "--force", "other")
			goOn()
			var began time.Time // when the other one was given a worker
			for _, op := range n.operations(t) {
				if op.Target == created.ID && op.Kind == "environment.create" {
					began = op.StartedAt
				}
			}
			for name, id := range ops {
				Eventually(t, "the operation on "+name+" to end", func() bool { return !n.operation(t, id).FinishedAt.IsZero() })
				if op := n.operation(t, id); op.State != "OPERATION_STATE_SUCCEEDED" || began.IsZero() || op.FinishedAt.Before(began) {
					t.Errorf("the other environment was begun at %v, %s: %+v", began, name, op)
				}
			}
			if state := n.Get(t, "stopped").State; state != "ENVIRONMENT_STATE_STOPPED" {
				t.Errorf("what was stopped is %s", state)
			}
			if state := n.Get(t, "restarted").State; state != running {
				t.Errorf("what was restarted is %s", state)
			}
			n.Must(t, "env", "start", "stopped")
			n.Must(t, "env", "rm", "--force", "stopped", "restarted")
			n.NothingLeft(t)
		})
	}
}
