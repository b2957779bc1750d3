package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
	Read        int64  `json:"blockReadBytes,string"`
	Written     int64  `json:"blockWriteBytes,string"`
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
	for _, kind := range either(t) {
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

// What an environment writes to its volume and its writable layer is counted.
// Linux counts for cgroup v1 what it throttles alone (since 6.10 it sets up the
// counters of a disk when the first limit is set), so the environment gets a
// limit there that nothing reaches. With cgroup v2 it needs none.
func TestBlockIOIsCounted(t *testing.T) {
	n := Start(t, testutil.Containerd2, "")
	n.Must(t, "env", "create", "writer", "--image", n.Image, "-v", "data:/data")
	if before := n.stats(t, "writer")["writer"]; before.Written >= 1<<20 {
		t.Fatalf("before it has written anything: %+v", before)
	}
	disk, onDisk := diskOf(t, n.Dir)
	limits := filepath.Join("/sys/fs/cgroup/blkio", n.Containerd.Cgroup, n.Get(t, "writer").ID, "blkio.throttle.write_bps_device")
	if _, err := os.Stat(limits); err == nil && onDisk {
		if err := os.WriteFile(limits, []byte(disk+" 1099511627776"), 0); err != nil {
			t.Fatal(err)
		}
	}
	const size = 8 << 20
	written := int64(0)
	for _, file := range []string{"/data/file", "/file"} {
		n.Must(t, "env", "exec", "--stdin=false", "writer", "--", "testprog", "fill-synced", file, strconv.Itoa(size>>20))
		if !onDisk {
			t.Logf("%s is on no block device: there is nothing to count", n.Dir)
			if now := n.stats(t, "writer")["writer"]; now.Written != 0 {
				t.Errorf("counted %d bytes of no disk", now.Written)
			}
			continue
		}
		now := n.stats(t, "writer")["writer"]
		// Its file system writes a journal as well.
		if grown := now.Written - written; grown < size || grown > 4*size {
			t.Errorf("after %d bytes to %s the counter has grown by %d", size, file, grown)
		}
		written = now.Written
	}
	if out := n.Must(t, "env", "top", "--no-stream", "writer"); onDisk && !strings.Contains(out, "MiB") {
		t.Errorf("top: %s", out)
	}
}

// diskOf is the number of the whole disk that a directory is on; false when it
// is on none, as in a tmpfs.
func diskOf(tb testing.TB, dir string) (number string, found bool) {
	tb.Helper()
	var stat unix.Stat_t
	if err := unix.Stat(dir, &stat); err != nil {
		tb.Fatal(err)
	}
	device, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(stat.Dev), unix.Minor(stat.Dev)))
	if err != nil {
		return "", false
	}
	if _, err := os.Stat(filepath.Join(device, "partition")); err == nil {
		device = filepath.Dir(device)
	}
	text, err := os.ReadFile(filepath.Join(device, "dev"))
	if err != nil {
		tb.Fatal(err)
	}
	return strings.TrimSpace(string(text)), true
}

// A watch tells disk use as well, and learns of what is written.
func TestWatchedDisks(t *testing.T) {
	n := Start(t, testutil.Containerd2, "")
	n.Must(t, "env", "create", "writer", "--image", n.Image)
	cmd := n.command(t, testutil.Program("remotegpu"), "env", "top", "writer", "--disk", "--interval", "100ms", "-o", "json")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	lines := json.NewDecoder(out)
	until := func(what string, holds func(disk int64) bool) int64 {
		t.Helper()
		for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); {
			var message struct {
				Stats []stats `json:"stats"`
			}
			if err := lines.Decode(&message); err != nil || len(message.Stats) != 1 {
				t.Fatalf("message %+v: %v", message, err)
			}
			if disk := message.Stats[0].Disk; disk != nil && holds(*disk) {
				return *disk
			}
		}
		t.Fatalf("waited in vain for %s", what)
		return 0
	}
	before := until("the first size", func(int64) bool { return true })
	n.Must(t, "env", "exec", "--stdin=false", "writer", "--", "testprog", "fill", "/big", "8")
	until("the next size", func(disk int64) bool { return disk >= before+8<<20 })
	if table := n.Must(t, "env", "top", "--disk", "--no-stream", "writer"); !strings.Contains(table, "DISK") {
		t.Errorf("top: %s", table)
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
