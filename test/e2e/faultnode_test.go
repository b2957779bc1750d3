package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// long says that this run takes its time: make test-all.
func long() bool { return os.Getenv("REMOTEGPU_TEST_LONG") != "" }

// testDaemon builds a remotegpud with the race detector and with fault points,
// once, and returns where it is.
var testDaemon = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "rgpud")
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, "remotegpud")
	build := exec.Command("go", "build", "-race", "-tags", "faultpoints", "-o", program, "./cmd/remotegpud")
	build.Dir = testutil.Repository()
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build remotegpud: %w\n%s", err, out)
	}
	return program, os.Symlink(testutil.Program("remotegpu-logwriter"), filepath.Join(dir, "remotegpu-logwriter"))
})

func TestMain(m *testing.M) {
	code := m.Run()
	if testDaemonBuilt.Load() {
		if program, err := testDaemon(); err == nil {
			_ = os.RemoveAll(filepath.Dir(program))
		}
	}
	os.Exit(code)
}

var testDaemonBuilt atomic.Bool

// faultNode is a node whose daemon can be killed at its fault points.
type faultNode struct {
	*Node
	dir string // of the fault points
	// struck are the points that operations before have been killed at.
	struck map[string]bool
	armed  int
	// mapping is the port mapping that a scenario is about.
	mapping string
	// left is what a GPU is left with that nobody has; "": nothing.
	left func(testing.TB) string
	http *http.Client
}

// startTestDaemon starts a node with the daemon of testDaemon. The race
// detector's findings fail the test.
func startTestDaemon(tb testing.TB, kind testutil.Need, extra string) *faultNode {
	tb.Helper()
	return testDaemonOn(tb, testutil.StartContainerd(tb, kind), extra)
}

// testDaemonOn is startTestDaemon on a containerd that is there.
func testDaemonOn(tb testing.TB, containerd *testutil.ContainerdDaemon, extra string) *faultNode {
	tb.Helper()
	testutil.Require(tb, testutil.Root, testutil.IPTables, testutil.Programs)
	testDaemonBuilt.Store(true)
	program, err := testDaemon()
	if err != nil {
		tb.Fatal(err)
	}
	f := &faultNode{dir: tb.TempDir(), struck: make(map[string]bool), left: func(testing.TB) string { return "" }}
	races := filepath.Join(tb.TempDir(), "race")
	f.Node = startOn(tb, containerd, func(config string) string { return config + extra }, func(n *Node) {
		n.Program = program
		n.Environ = []string{"REMOTEGPU_FAULTPOINTS=" + f.dir, "GORACE=log_path=" + races + " exitcode=66"}
		tb.Cleanup(func() { // after the daemon has ended
			reports, _ := filepath.Glob(races + "*")
			for _, report := range reports {
				text, _ := os.ReadFile(report)
				tb.Errorf("the race detector says:\n%.8000s", text)
			}
		})
	})
	f.http = &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", f.Socket())
		},
	}}
	return f
}

// ask calls a method with JSON; an error is a connection that broke.
func (f *faultNode) ask(method, body string, into any) (status int, text string, err error) {
	response, err := f.http.Post("http://node/remotegpu.v1."+method, "application/json", strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	out, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode == http.StatusOK && into != nil {
		err = json.Unmarshal(out, into)
	}
	return response.StatusCode, string(bytes.TrimSpace(out)), err
}

// must is ask of a call that must succeed.
func (f *faultNode) must(tb testing.TB, method, body string) {
	tb.Helper()
	if status, text, err := f.ask(method, body, nil); err != nil || status != http.StatusOK {
		tb.Fatalf("%s %s: %d %s %v", method, body, status, text, err)
	}
}

// environment reads the environment "one", nil when it is not there.
func (f *faultNode) environment(tb testing.TB) *Environment {
	tb.Helper()
	var got struct{ Environment Environment }
	status, text, err := f.ask("EnvironmentService/GetEnvironment", `{"environment":"one"}`, &got)
	if status == http.StatusNotFound {
		return nil
	}
	if err != nil || status != http.StatusOK {
		tb.Fatalf("get one: %d %s %v", status, text, err)
	}
	return &got.Environment
}

// faultPoint is one point of the program: its scope, what it is and the how
// many-th pass in that scope.
type faultPoint struct {
	scope, what, name string
	n                 int
}

func (p faultPoint) String() string {
	text := p.what + " " + p.name
	if strings.HasPrefix(p.scope, "request ") {
		text = "request: " + text
	}
	if p.n > 1 {
		text += fmt.Sprintf(", %d", p.n)
	}
	return text
}

// arm has the daemon killed, or the step failed, when the point is reached.
func (f *faultNode) arm(tb testing.TB, action string, p faultPoint) {
	tb.Helper()
	f.armed++
	f.disarm()
	line := fmt.Sprintf("%s\t%s\t%s\t%s\t%d\n%d\n", action, p.scope, p.what, p.name, p.n, f.armed)
	if err := os.WriteFile(filepath.Join(f.dir, "new"), []byte(line), 0o600); err != nil {
		tb.Fatal(err)
	}
	if err := os.Rename(filepath.Join(f.dir, "new"), filepath.Join(f.dir, "arm")); err != nil {
		tb.Fatal(err)
	}
}

func (f *faultNode) disarm() {
	_ = os.Remove(filepath.Join(f.dir, "arm"))
	_ = os.Remove(filepath.Join(f.dir, "fired"))
}

func (f *faultNode) fired() bool {
	_, err := os.Stat(filepath.Join(f.dir, "fired"))
	return err == nil
}

// points are those passed since the last call, in order.
func (f *faultNode) points(tb testing.TB) []faultPoint {
	tb.Helper()
	path := filepath.Join(f.dir, "trace")
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		tb.Fatal(err)
	}
	if err := os.Truncate(path, 0); err != nil && !os.IsNotExist(err) {
		tb.Fatal(err)
	}
	var found []faultPoint
	counts := make(map[string]int)
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		counts[line]++
		parts := strings.Split(line, "\t")
		if len(parts) != 3 {
			tb.Fatalf("trace: %q", line)
		}
		found = append(found, faultPoint{parts[0], parts[1], parts[2], counts[line]})
	}
	return found
}

// kinds are those of operations that the program knows.
func (f *faultNode) kinds(tb testing.TB) []string {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join(f.dir, "kinds"))
	if err != nil {
		tb.Fatal(err)
	}
	return strings.Fields(string(text))
}

// died waits for the daemon's end by a fault point.
func (f *faultNode) died(tb testing.TB) {
	tb.Helper()
	select {
	case <-f.waited:
		f.stopped = true
		_ = f.log.Close()
	case <-time.After(60 * time.Second):
		tb.Fatal("the daemon reached the point and lives")
	}
}
