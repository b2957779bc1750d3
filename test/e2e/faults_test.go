package e2e_test

import (
	"database/sql"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
	_ "github.com/mattn/go-sqlite3" // the database is looked into beside the daemon

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/test/fakenvml"
)

// faultScenario is one kind of operation as the table of faults has it done.
type faultScenario struct {
	kind string
	// before brings about what the operation starts from, whatever the run
	// before has left.
	before func(testing.TB, *faultNode)
	// method and body are the request; %s in body is the request id, MAPPING the
	// port mapping that before has chosen.
	method, body string
	// state is what the environment "one" is in when all went well; "": gone.
	state string
	// keep says that the next run starts from what this one leaves.
	keep bool
	// more checks what state does not tell. nil: nothing.
	more func(testing.TB, *faultNode)
	// only picks the points that are struck without REMOTEGPU_TEST_LONG, and that
	// fail with it. nil: all.
	only func(faultPoint) bool
}

const (
	stateRunning = "ENVIRONMENT_STATE_RUNNING"
	stateStopped = "ENVIRONMENT_STATE_STOPPED"
)

// faultScenarios are the kinds that the table covers. A kind that the program
// knows and that is not here fails the test.
func faultScenarios(f *faultNode, registry *testutil.ImageRegistry, pulled string) []faultScenario {
	create := `{"request_id":%s,"wait":"60s","name":"one","spec":{"image":"` + f.Image + `","command":["banner",":8080","one"],` +
		`"gpu":{"mode":"GPU_MODE_MIG","profile":"1g.5gb"},` +
		`"ports":[{"service_type":"SERVICE_TYPE_CUSTOM","internal_port":8080}],` +
		`"mounts":[{"type":"MOUNT_TYPE_VOLUME","source":"data","target":"/data"},{"type":"MOUNT_TYPE_BIND","source":"` + f.Shared + `","target":"/shared"}]}}`
	on := func(more string) string { return `{"request_id":%s,"wait":"60s","environment":"one"` + more + `}` }
	exists := existing(create)
	return []faultScenario{
		{kind: "environment.create", before: nothing, method: "EnvironmentService/CreateEnvironment", body: create, state: stateRunning},
		{kind: "environment.stop", before: exists(stateRunning), method: "EnvironmentService/StopEnvironment", body: on(`,"timeout":"1s"`), state: stateStopped, keep: true},
		{kind: "environment.start", before: exists(stateStopped), method: "EnvironmentService/StartEnvironment", body: on(""), state: stateRunning, keep: true},
		{kind: "environment.restart", before: exists(stateRunning), method: "EnvironmentService/RestartEnvironment", body: on(`,"timeout":"1s"`), state: stateRunning, keep: true},
		{kind: "environment.pause", before: exists(stateRunning), method: "EnvironmentService/PauseEnvironment", body: on(""), state: stateStopped, keep: true},
		{
			kind: "environment.resume", method: "EnvironmentService/ResumeEnvironment", body: on(""), state: stateRunning, keep: true,
			before: func(tb testing.TB, f *faultNode) {
				tb.Helper()
				exists(stateRunning)(tb, f)
				f.must(tb, "EnvironmentService/PauseEnvironment", fmt.Sprintf(on(""), `""`))
			},
		},
		{
			kind: "environment.update", method: "EnvironmentService/UpdateEnvironment", body: fullUpdate, state: stateRunning, keep: true,
			before: then(exists(stateRunning), notUpdated), more: updatedWhole,
		},
		{
			kind: "snapshot.export", method: "SnapshotService/ExportSnapshot", keep: true,
			body:   `{"request_id":%s,"wait":"60s","snapshot":"one/kept","reference":"team/exported:1"}`,
			before: then(exists(stateRunning), keptSnapshot, noImage("team/exported:1")), more: oneSnapshot(stateRunning),
		},
		{ // of one that does not run: a stop and a start have points of their own
			kind: "environment.rollback", method: "SnapshotService/RollBackEnvironment", body: on(`,"snapshot":"kept"`), keep: true,
			before: then(keptRunning(exists(stateRunning)), exists(stateStopped)), more: oneSnapshot(stateStopped),
		},
		{
			kind: "environment.snapshot", method: "SnapshotService/CreateSnapshot", body: on(""), keep: true,
			before: then(exists(stateRunning), noSnapshots), more: oneSnapshot(stateRunning),
		},
		{
			kind: "environment.snapshot", method: "SnapshotService/CreateSnapshot", body: on(""), keep: true,
			before: then(exists(stateStopped), noSnapshots), more: oneSnapshot(stateStopped),
		},
		{
			kind: "port.create", method: "PortService/CreatePortMapping", body: on(addedPort), keep: true,
			before: then(exists(stateRunning), notUpdated), more: portsAre("8080", "8081 198.51.100.0/24"),
		},
		{
			kind: "port.update", method: "PortService/UpdatePortMapping", keep: true,
			body:   `{"request_id":%s,"wait":"60s",` + mappingOf + `,"allowed_sources":["198.51.100.0/24"]}`,
			before: then(exists(stateRunning), chosenPort(8080)), more: portsAre("8080 198.51.100.0/24"),
		},
		{
			kind: "port.delete", method: "PortService/DeletePortMapping", body: `{"request_id":%s,"wait":"60s",` + mappingOf + `}`, keep: true,
			before: then(exists(stateRunning), chosenPort(8081)), more: portsAre("8080"),
		},
		{kind: "environment.delete", before: then(exists(stateRunning), noSnapshots), method: "EnvironmentService/DeleteEnvironment", body: on(`,"timeout":"0s","force":true`)},
		{
			kind: "image.pull", method: "ImageService/PullImage", body: `{"request_id":%s,"wait":"60s","reference":"` + pulled + `"}`,
			before: noImage(pulled),
			more: func(tb testing.TB, f *faultNode) {
				tb.Helper()
				f.must(tb, "EnvironmentService/CreateEnvironment", `{"wait":"60s","name":"one","spec":{"image":"`+pulled+`","pull_policy":"PULL_POLICY_NEVER"}}`)
			},
		},
		{
			kind: "image.push", method: "ImageService/PushImage",
			body:   `{"request_id":%s,"wait":"60s","reference":"` + f.Image + `","destination":"` + strings.Replace(pulled, "/team/tool:", "/team/pushed:", 1) + `"}`,
			before: func(testing.TB, *faultNode) { registry.Remove("team/pushed", "1") },
			more: func(tb testing.TB, _ *faultNode) {
				tb.Helper()
				if registry.Tagged("team/pushed", "1") == "" {
					tb.Error("the registry does not have what was pushed")
				}
			},
		},
	}
}

// existing has an environment that a request creates in a state, whatever the run
// before has left.
func existing(create string) func(state string) func(testing.TB, *faultNode) {
	on := func(more string) string { return `{"wait":"60s","environment":"one"` + more + `}` }
	return func(state string) func(testing.TB, *faultNode) {
		return func(tb testing.TB, f *faultNode) {
			tb.Helper()
			if f.environment(tb) == nil {
				f.must(tb, "EnvironmentService/CreateEnvironment", fmt.Sprintf(create, `""`))
			}
			switch env := f.environment(tb); {
			case env.State == state:
			case state == stateRunning:
				f.must(tb, "EnvironmentService/StartEnvironment", on(""))
			case env.State == stateRunning:
				f.must(tb, "EnvironmentService/StopEnvironment", on(`,"timeout":"0s"`))
			default: // in error after a failure
				f.must(tb, "EnvironmentService/StartEnvironment", on(""))
				f.must(tb, "EnvironmentService/StopEnvironment", on(`,"timeout":"0s"`))
			}
		}
	}
}

func nothing(testing.TB, *faultNode) {}

func noImage(reference string) func(testing.TB, *faultNode) {
	return func(tb testing.TB, f *faultNode) {
		tb.Helper()
		if status, text, err := f.ask("ImageService/DeleteImage", `{"reference":"`+reference+`"}`, nil); err != nil || status != http.StatusOK && status != http.StatusNotFound {
			tb.Fatalf("delete image %s: %d %s %v", reference, status, text, err)
		}
	}
}

// The daemon is killed at each step of each operation and started again: the
// operation is done then, and nothing leaks. The steps are what the program
// passes, so a new one is in the table by itself. Without REMOTEGPU_TEST_LONG a
// point that several operations pass is struck in the first of them, but for
// writes to the database; with it each is, each also fails before and after its
// work, and both containerds are used.
func TestFaultTable(t *testing.T) {
	t.Parallel() // beside the soak: both wait most of the time
	kinds := []testutil.Need{usual}
	if long() {
		kinds = both
	}
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
			library.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{{Model: gpus.A100_SXM4_40GB}}})
			library.MIGMode(t, 0, true)
			f := startTestDaemon(t, kind, fmt.Sprintf("[gpu]\nlibrary = %q\ninjection = \"none\"\nhand_over = 1\n", library.Path))
			registry := testutil.Registry(t)
			gate := startRegistry(t, f.Node, registry)
			pulled := gate.host + "/team/tool:1"
			registry.Push("team/tool", "1", testutil.TestImage(t, testutil.ImageOptions{Name: pulled}))
			scenarios := faultScenarios(f, registry, pulled)
			for _, known := range f.kinds(t) {
				if known != buildKind && !slices.ContainsFunc(scenarios, func(s faultScenario) bool { return s.kind == known }) {
					t.Errorf("operations of kind %s are not in the table of faults: give them a scenario", known)
				}
			}
			for _, s := range scenarios {
				t.Run(s.kind, func(t *testing.T) { f.table(t, s) })
			}
		})
	}
}

// table runs one scenario at each of its points.
func (f *faultNode) table(t *testing.T, s faultScenario) {
	t.Helper()
	f.disarm()
	s.before(t, f)
	f.points(t)
	f.request(t, s, "plain")
	f.settled(t, s, true)
	var points []faultPoint
	for _, p := range f.points(t) {
		if p.scope == s.kind || p.scope == "request "+s.kind {
			points = append(points, p)
		}
	}
	if len(points) < 4 {
		t.Fatalf("it passes the points %v only", points)
	}
	rows, missed, runs, left := &strings.Builder{}, 0, 0, 0
	for i, p := range points {
		for _, action := range []string{"kill", "fail"} {
			// Killed before a step is killed after the one before it.
			if action == "kill" && p.what == "before" && i > 0 || action == "fail" && !long() {
				continue
			}
			if s.only != nil && !s.only(p) && (action == "fail" || !long()) {
				continue
			}
			if !long() && f.struck[p.String()] && p.name != "database write" {
				left++
				continue
			}
			f.struck[p.String()] = true
			runs++
			begin := time.Now()
			outcome := f.strike(t, s, action, p)
			if outcome == "" { // what an earlier run has left, or a cache, saved the step
				f.afresh(t)
				outcome = f.strike(t, s, action, p)
			}
			if outcome == "" {
				missed++
				outcome = "not reached, twice"
			}
			fmt.Fprintf(rows, "  %-4s %-44s %-50s %5d ms\n", action, p, outcome, time.Since(begin).Milliseconds())
			if t.Failed() {
				t.Fatalf("%s\n%s", s.kind, rows)
			}
		}
	}
	if left > 0 {
		fmt.Fprintf(rows, "  %d points that operations before this one pass as well are left to make test-all\n", left)
	}
	t.Logf("%s\n%s", s.kind, rows)
	// A process may end by itself before it is killed a second time.
	if missed > 2 {
		t.Errorf("%d of %d points were not reached", missed, runs)
	}
}

// afresh gives the next run a daemon that knows nothing, and no environment.
func (f *faultNode) afresh(t *testing.T) {
	t.Helper()
	if f.environment(t) != nil {
		f.must(t, "EnvironmentService/DeleteEnvironment", `{"environment":"one","force":true,"timeout":"0s","wait":"60s"}`)
	}
	noSnapshots(t, f)
	f.Stop(t, syscall.SIGTERM)
	f.Run(t)
}

// strike runs the scenario with one point armed and returns how it ended, ""
// when the point was not reached.
func (f *faultNode) strike(t *testing.T, s faultScenario, action string, p faultPoint) string {
	t.Helper()
	s.before(t, f)
	f.arm(t, action, p)
	id := fmt.Sprintf("request-%d-%d", f.armed, time.Now().UnixNano())
	status, text, err := f.ask(s.method, f.body(s, id), nil)
	if err == nil && status == http.StatusOK && p.scope == s.kind {
		// What goes on in the background may get there yet.
		for deadline := time.Now().Add(time.Second); !f.fired() && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		}
	}
	if !f.fired() {
		f.disarm()
		f.settled(t, s, status == http.StatusOK)
		return ""
	}
	if action == "fail" {
		f.disarm()
		f.settled(t, s, status == http.StatusOK)
		if status == http.StatusOK {
			return "succeeded all the same"
		}
		return fmt.Sprintf("refused or failed: %.35q", text)
	}
	f.died(t)
	f.disarm()
	f.Run(t)
	if status, text, again := f.ask(s.method, f.body(s, id), nil); again != nil || status != http.StatusOK {
		t.Errorf("%v: the same request after the kill (%v before it): %d %s %v", p, err, status, text, again)
	}
	f.settled(t, s, true)
	return "done after the restart"
}

// request has the scenario's operation done.
func (f *faultNode) request(t *testing.T, s faultScenario, id string) {
	t.Helper()
	f.must(t, s.method, f.body(s, fmt.Sprintf("%s-%d", id, time.Now().UnixNano())))
}

// body is the request with that id.
func (f *faultNode) body(s faultScenario, id string) string {
	return strings.ReplaceAll(fmt.Sprintf(s.body, `"`+id+`"`), "MAPPING", f.mapping)
}

// settled checks what an operation has left. done says that it succeeded: else
// any state will do, as long as nothing is at work and all can be removed.
func (f *faultNode) settled(t *testing.T, s faultScenario, done bool) {
	t.Helper()
	Eventually(t, "operations to end", func() bool {
		return f.count(t, "SELECT count(*) FROM operations WHERE state IN ('queued', 'running')") == 0
	})
	if done && s.more != nil {
		s.more(t, f)
	}
	env := f.environment(t)
	if done && s.more == nil {
		switch {
		case (env == nil) != (s.state == "") || env != nil && env.State != s.state:
			t.Errorf("the environment is %+v, want %q", env, s.state)
		case env != nil:
			answers := func() bool {
				answer, err := f.Ask(t, env.Ports[0].External)
				return err == nil && strings.HasPrefix(answer, "one")
			}
			if s.state == stateRunning {
				Eventually(t, "the port to answer", answers) // it may just have started
			} else if answers() {
				t.Errorf("the port of %+v answers", env)
			}
		}
	}
	if n := f.count(t, "SELECT count(*) FROM environments WHERE state != 'deleted' AND operation != ''"); n > 0 {
		t.Errorf("%d environments are owned by an operation that has ended", n)
	}
	if s.keep && done {
		return
	}
	if env != nil {
		f.must(t, "EnvironmentService/DeleteEnvironment", `{"environment":"one","force":true,"timeout":"0s","wait":"60s"}`)
	}
	// An environment does not wait for its instance to be removed: what fails
	// then a pass makes up for.
	Eventually(t, "GPUs to be given back", func() bool {
		list := f.gpus(t)
		if f.count(t, "SELECT count(*) FROM gpu_leases WHERE released_at = 0") == 0 && f.left(t) == "" && (len(list.GPUs) == 0 || len(list.GPUs[0].Instances) == 0) {
			return true
		}
		f.must(t, "NodeService/Reconcile", `{}`)
		return false
	})
	for what, query := range heldByNobody {
		if n := f.count(t, query); n > 0 {
			t.Errorf("%d %s are held by nobody", n, what)
		}
	}
	f.NothingLeft(t)
}

// heldByNobody counts what must be 0 when there is no environment.
var heldByNobody = map[string]string{
	"addresses":     "SELECT count(*) FROM environments WHERE slot IS NOT NULL OR held != 0",
	"environments":  "SELECT count(*) FROM environments WHERE state != 'deleted'",
	"port mappings": "SELECT count(*) FROM port_mappings WHERE status != 'released'",
}

// count answers a query of the daemon's database.
func (f *faultNode) count(tb testing.TB, query string) (n int) {
	tb.Helper()
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(f.Dir, "state", "node.db")+"?mode=ro&_busy_timeout=5000")
	if err != nil {
		tb.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow(query).Scan(&n); err != nil {
		tb.Fatalf("%s: %v", query, err)
	}
	return n
}
