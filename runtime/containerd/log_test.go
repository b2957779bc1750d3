//nolint:thelper // what both runs are tests, and a failure should name their lines
package containerd_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/containerd"
	"github.com/remotegpu/remotegpu/runtime/logfile"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
	"github.com/remotegpu/remotegpu/test/fakenvml"
)

// logWriter builds our log writer, once, and returns where it is.
var logWriter = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "rglw")
	if err != nil {
		return "", err
	}
	logWriterDir = dir
	program := filepath.Join(dir, "remotegpu-logwriter")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", program, "./cmd/remotegpu-logwriter")
	build.Dir, build.Env = testutil.Repository(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build log writer: %w\n%s", err, out)
	}
	return program, nil
})

// logWriterDir is removed when all tests have ended.
var logWriterDir string

// tests are those of this package, and what goes with the last of them.
type tests struct{ *testing.M }

func (t tests) Run() int {
	defer func() { _ = os.RemoveAll(logWriterDir) }()
	return t.M.Run()
}

func TestMain(m *testing.M) { fakenvml.Main(tests{m}) }

// openWithWriter is an engine whose logs are written by our program.
func openWithWriter(t *testing.T, d *testutil.ContainerdDaemon) *containerd.Engine {
	t.Helper()
	program, err := logWriter()
	if err != nil {
		t.Fatal(err)
	}
	engine, err := containerd.New(containerd.Config{
		Address: d.Address, Namespace: d.Namespace, CgroupParent: d.Cgroup, LogDir: logs(d), FIFODir: filepath.Join(d.Dir, "fifo"),
		LogWriter: containerd.LogWriter{Path: program, MaxSize: logfile.MinMaxSize, MaxFiles: 3},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = engine.Close() })
	return engine
}

func logLines(t *testing.T, path string) []logfile.Line {
	t.Helper()
	var lines []logfile.Line
	if err := logfile.Read(t.Context(), path, logfile.Selection{}, func(line logfile.Line) error {
		line.Data = bytes.Clone(line.Data)
		lines = append(lines, line)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return lines
}

// count counts the lines that are one of texts.
func count(t *testing.T, path string, texts ...string) int {
	t.Helper()
	found := 0
	for _, line := range logLines(t, path) {
		if slices.Contains(texts, string(line.Data)) {
			found++
		}
	}
	return found
}

// writers are the log writers of a log, by pid.
func writers(t *testing.T, path string) []int {
	t.Helper()
	var pids []int
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err == nil && bytes.Contains(text, []byte("remotegpu-logwriter\x00")) && bytes.Contains(text, []byte(path)) {
			pid, _ := strconv.Atoi(strings.Split(name, "/")[2])
			pids = append(pids, pid)
		}
	}
	return pids
}

// The whole contract of an engine holds with the writer, too.
func TestEngineWithLogWriter(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine := openWithWriter(t, d)
		runtimetest.Engine(t, func(t *testing.T) runtimetest.EngineSetup {
			t.Helper()
			return runtimetest.EngineSetup{
				Engine: engine, Reopen: func() runtime.Engine { return openWithWriter(t, d) },
				Image: testutil.ImageName, Digest: digestOf(t, d), NetNS: netNS(t, d), Logs: logs(d),
				Leftovers: func() []string { return leftovers(t, d) },
			}
		})
	})
}

// Streams are told apart, a restart goes on in the same log, and with the
// container its log and its writer are gone.
func TestLogWriter(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine := openWithWriter(t, d)
		log := filepath.Join(logs(d), "one.log")
		c := runtime.Container{
			ID: "one", Image: testutil.ImageName, NetNS: netNS(t, d)(), LogPath: log,
			Command: []string{"echo", "to stdout", ";", "stderr", "to stderr", ";", "sleep"},
		}
		start(t, engine, c)
		runtimetest.Eventually(t, "both lines are there", func() bool { return count(t, log, "to stdout", "to stderr") == 2 })
		for _, line := range logLines(t, log) {
			want := map[logfile.Stream]string{logfile.Stdout: "to stdout", logfile.Stderr: "to stderr"}[line.Stream]
			if string(line.Data) != want || line.Time.IsZero() {
				t.Errorf("%q of stream %d at %v", line.Data, line.Stream, line.Time)
			}
		}
		// Containerd is none of the log's business.
		d.Kill(t)
		d.Start(t)
		if pids := writers(t, log); len(pids) != 1 {
			t.Errorf("writers %v, want one", pids)
		}
		stop(t, engine, "one")
		if pids := writers(t, log); len(pids) != 0 {
			t.Errorf("writers %v of a container that stopped", pids)
		}
		if _, err := engine.Start(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		runtimetest.Eventually(t, "the second run is there", func() bool { return count(t, log, "to stdout", "to stderr") == 4 })
		for i := range 3 {
			if err := os.WriteFile(fmt.Sprintf("%s.%08d", log, i+100), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := engine.Delete(t.Context(), "one"); err != nil {
			t.Fatal(err)
		}
		if left := leftovers(t, d); len(left) > 0 {
			t.Errorf("left %q", left)
		}
		if pids := writers(t, log); len(pids) != 0 {
			t.Errorf("writers %v of a deleted container", pids)
		}
	})
}

// Without the program the shim writes, and the log is one all the same.
func TestLogWriterMissing(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine := openWithWriter(t, d)
		log := filepath.Join(logs(d), "one.log")
		c := runtime.Container{
			ID: "one", Image: testutil.ImageName, NetNS: netNS(t, d)(), LogPath: log, Command: []string{"echo", "hello", ";", "sleep"},
		}
		start(t, open(t, d), c)
		runtimetest.Eventually(t, "the line is there", func() bool { return len(logLines(t, log)) == 1 })
		stop(t, engine, "one")
		if _, err := engine.Start(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		runtimetest.Eventually(t, "the writer's line is there", func() bool {
			lines := logLines(t, log)
			return count(t, log, "hello") == 2 && lines[0].Time.IsZero() && !lines[len(lines)-1].Time.IsZero()
		})
		if err := engine.Delete(t.Context(), "one"); err != nil {
			t.Fatal(err)
		}
	})
}

// What a killed writer does to its container: it does not block it. A program
// that writes gets SIGPIPE, as with any reader that goes; one that does not
// write lives on, and can be stopped and started again with a log that has all
// there was.
func TestLogWriterKilled(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine := openWithWriter(t, d)
		log := filepath.Join(logs(d), "quiet.log")
		quiet := runtime.Container{
			ID: "quiet", Image: testutil.ImageName, NetNS: netNS(t, d)(), LogPath: log,
			Command: []string{"echo", "hello", ";", "write", "/proc/self/fd/1", "ready> ", ";", "sleep"},
		}
		loud := runtime.Container{
			ID: "loud", Image: testutil.ImageName, NetNS: quiet.NetNS, LogPath: filepath.Join(logs(d), "loud.log"), Command: []string{"tick"},
		}
		for _, c := range []runtime.Container{quiet, loud} {
			start(t, engine, c)
			runtimetest.Eventually(t, "it has written", func() bool { return len(logLines(t, c.LogPath)) > 1 })
			if _, err := engine.List(t.Context()); err != nil || !engine.Intact() {
				t.Errorf("not Intact() with its writer: %v", err)
			}
			for _, pid := range writers(t, c.LogPath) {
				if !mayLowerScores(t) {
					t.Log("without CAP_SYS_RESOURCE nothing protects the writer from the OOM killer: not checked")
				} else if score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid)); err != nil || strings.TrimSpace(string(score)) != "-999" {
					t.Errorf("oom_score_adj %q %v", score, err)
				}
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
		runtimetest.Eventually(t, "the one that writes is not blocked", func() bool {
			status, err := engine.Status(t.Context(), "loud")
			return err == nil && !status.Running
		})
		if status, err := engine.Status(t.Context(), "quiet"); err != nil || !status.Running {
			t.Errorf("the one that does not write: %+v %v", status, err)
		}
		if engine.Intact() {
			t.Error("Intact() without the writers")
		}
		lost := func() (ids []string) {
			all, err := engine.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, status := range all {
				if status.LogLost {
					ids = append(ids, status.ID)
				}
			}
			return ids
		}
		if ids := lost(); !slices.Equal(ids, []string{"quiet"}) {
			t.Errorf("without a writer run %q", ids)
		}
		stop(t, engine, "quiet")
		if _, err := engine.Start(t.Context(), quiet); err != nil {
			t.Fatal(err)
		}
		if ids := lost(); len(ids) > 0 {
			t.Errorf("started anew, without a writer run %q", ids)
		}
		runtimetest.Eventually(t, "it writes again", func() bool { return count(t, log, "hello") == 2 })
		// The line that the killed writer had begun is none with the next one.
		var text string
		for _, line := range logLines(t, log) {
			text += string(line.Data)
			if !line.Partial {
				text += "|"
			}
		}
		if !strings.HasPrefix(text, "hello|ready> |hello|") {
			t.Errorf("the log is %q", text)
		}
		for _, id := range []string{"quiet", "loud"} {
			if err := engine.Delete(t.Context(), id); err != nil {
				t.Errorf("delete %s: %v", id, err)
			}
		}
		if left := leftovers(t, d); len(left) > 0 {
			t.Errorf("left %q", left)
		}
	})
}

// mayLowerScores says whether this process, and so the daemons it starts, may
// ask the OOM killer to spare somebody.
func mayLowerScores(t *testing.T) bool {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		t.Fatal(err)
	}
	return sets[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}
