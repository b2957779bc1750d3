package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// stats is what the tests read of an environment's use.
type stats struct {
	Environment string `json:"environment"`
	Name        string `json:"name"`
	CPUNanos    int64  `json:"cpuNanos,string"`
	CPUMillis   int64  `json:"cpuMillis,string"`
	WorkingSet  int64  `json:"memoryWorkingSetBytes,string"`
	Memory      int64  `json:"memoryUsageBytes,string"`
	Limit       int64  `json:"memoryLimitBytes,string"`
	Pids        int64  `json:"pids,string"`
	Received    int64  `json:"networkReceiveBytes,string"`
	Sent        int64  `json:"networkTransmitBytes,string"`
	Disk        *int64 `json:"diskBytes,string"`
}

func (n *Node) stats(tb testing.TB, args ...string) map[string]stats {
	tb.Helper()
	var answer struct {
		Stats []stats `json:"stats"`
	}
	if err := json.Unmarshal([]byte(n.Must(tb, append([]string{"env", "stats", "-o", "json"}, args...)...)), &answer); err != nil {
		tb.Fatal(err)
	}
	all := make(map[string]stats)
	for _, s := range answer.Stats {
		all[s.Name] = s
	}
	return all
}

func TestStats(t *testing.T) {
	for _, kind := range both {
		t.Run(string(kind), func(t *testing.T) {
			n := Start(t, kind, "")
			n.Must(t, "env", "create", "burner", "--image", n.Image, "--cpus", "0.5", "--memory", "64MiB", "--", "burn")
			n.Must(t, "env", "create", "eater", "--image", n.Image, "--memory", "128MiB", "--", "eat-memory", strconv.Itoa(40<<20))
			n.Must(t, "env", "create", "talker", "--image", n.Image, "-p", "custom:8080", "--", "banner", ":8080", strings.Repeat("x", 30<<10))
			n.Must(t, "env", "create", "stopped", "--image", n.Image)
			n.Must(t, "env", "stop", "stopped")
			Eventually(t, "the work to be seen", func() bool {
				all := n.stats(t)
				return all["burner"].CPUMillis > 100 && all["eater"].WorkingSet > 40<<20 && all["talker"].Pids > 0
			})
			all := n.stats(t)
			if _, listed := all["stopped"]; listed || len(all) != 3 {
				t.Errorf("those that run: %+v", all)
			}
			// The quota is 500; the measuring window is a moment.
			if burner := all["burner"]; burner.CPUMillis > 900 || burner.CPUNanos == 0 || burner.Limit != 64<<20 || burner.Pids < 1 || burner.Disk != nil {
				t.Errorf("burner: %+v", burner)
			}
			if eater := all["eater"]; eater.Memory < eater.WorkingSet || eater.WorkingSet > 128<<20 || eater.Limit != 128<<20 {
				t.Errorf("eater: %+v", eater)
			}
			before := all["talker"]
			external := n.Get(t, "talker").Ports[0].External
			for range 10 {
				fetch := fmt.Sprintf("timeout 20 bash -c 'head -c 30000 </dev/tcp/127.0.0.1/%d | wc -c'", external)
				if got := n.Sh(t, fetch); got != "30000" {
					t.Fatalf("talker answers %s bytes, want 30000", got)
				}
			}
			after := n.stats(t, "talker")["talker"]
			if sent := after.Sent - before.Sent; sent < 300000 || sent > 3<<20 {
				t.Errorf("talker sent %d bytes, want 300000", sent)
			}
			if after.Received <= before.Received {
				t.Errorf("talker received %d bytes and then %d", before.Received, after.Received)
			}
			small := n.stats(t, "--disk", "talker")["talker"]
			n.Must(t, "env", "exec", "--stdin=false", "talker", "--", "testprog", "write", "/big", strings.Repeat("y", 30<<10))
			large := n.stats(t, "--disk", "talker")["talker"]
			if small.Disk == nil || large.Disk == nil || *large.Disk-*small.Disk < 30<<10 || *large.Disk-*small.Disk > 1<<20 {
				t.Errorf("disk before %v and after 30 KiB %v", small.Disk, large.Disk)
			}
			if idle := n.stats(t, "--disk", "stopped")["stopped"]; idle.Disk == nil || idle.CPUNanos != 0 || idle.Memory != 0 || idle.Pids != 0 {
				t.Errorf("stopped: %+v", idle)
			}
			if _, _, code := n.CLI(t, "env", "stats", "nobody"); code != 3 {
				t.Errorf("stats of what is not there: exit %d, want 3", code)
			}
			if table := n.Must(t, "env", "top", "--no-stream", "burner"); !strings.Contains(table, "burner") || !strings.Contains(table, "64 MiB") {
				t.Errorf("top: %s", table)
			}
			watchStats(t, n)
		})
	}
}

// watchStats follows one environment: messages come, it may be stopped while
// it is watched, and the stream ends when it has gone.
func watchStats(t *testing.T, n *Node) {
	t.Helper()
	cmd := n.command(t, testutil.Program("remotegpu"), "env", "top", "burner", "--interval", "100ms", "-o", "json")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := json.NewDecoder(out)
	next := func() (stats, error) {
		var message struct {
			Stats []stats `json:"stats"`
		}
		err := lines.Decode(&message)
		if err == nil && len(message.Stats) != 1 {
			err = fmt.Errorf("%d environments", len(message.Stats))
		}
		if err != nil {
			return stats{}, err
		}
		return message.Stats[0], nil
	}
	var last int64
	for range 5 {
		s, err := next()
		if err != nil {
			t.Fatal(err)
		}
		if s.CPUNanos < last || s.Name != "burner" {
			t.Errorf("after %d ns: %+v", last, s)
		}
		last = s.CPUNanos
	}
	n.Must(t, "env", "stop", "--grace", "0s", "burner")
	for deadline := time.Now().Add(60 * time.Second); ; {
		s, err := next()
		if err != nil {
			t.Fatal(err)
		}
		if s.Pids == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("stopped: %+v", s)
		}
	}
	n.Must(t, "env", "rm", "burner")
	for err == nil {
		_, err = next()
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("the end of the stream: %v", err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 3 {
		t.Errorf("when it has gone: exit %d, want 3", code)
	}
}
