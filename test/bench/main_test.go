package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/test/bench/columns"
	"github.com/remotegpu/remotegpu/test/bench/report"
)

func TestRefusesBadFlags(t *testing.T) {
	for _, args := range [][]string{
		{"-runs", "0"},
		{"-warmup", "-1"},
		{"-containerd", "3"},
		{"-columns", "lxc"},
		{"surplus"},
		{"-suites", "dreams"},
		{"-scale", "7"},
		{"-scale", "50,1"},
		{"-many", "201"},
		{"-deaths", "0"},
		{"-idle", "0"},
		{"-ports", "10001"},
		{"-mappings", "20"},
		{"-environments", "1999"},
		{"-environments", "8001"},
		{"-connects", "0"},
		{"-rounds", "0"},
	} {
		var out, errs bytes.Buffer
		if err := run(t.Context(), args, &out, &errs); err == nil {
			t.Errorf("%v is accepted", args)
		}
	}
}

func TestRequireFailsWhenSomethingIsMissing(t *testing.T) {
	var out, errs bytes.Buffer
	absent := filepath.Join(t.TempDir(), "remotegpud")
	err := run(t.Context(), []string{"-require", "-columns", columns.RemoteGPU, "-remotegpud", absent}, &out, &errs)
	if err == nil || !strings.Contains(err.Error(), absent+" is not built") {
		t.Fatalf("error is %v, want one that names %s", err, absent)
	}
	if !strings.Contains(errs.String(), "column remotegpu cannot be measured") {
		t.Errorf("nothing is said about the column:\n%s", errs.String())
	}
}

// bench builds the program and returns a command that keeps the run's files
// in a directory of the test's.
func bench(t *testing.T, args ...string) (cmd *exec.Cmd, dir string, errs *bytes.Buffer) {
	t.Helper()
	dir = t.TempDir()
	program := filepath.Join(dir, "bench")
	if said, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, said)
	}
	errs = &bytes.Buffer{}
	cmd = exec.CommandContext(t.Context(), program, append([]string{"-dir", dir, "-warmup", "0"}, args...)...)
	cmd.Stderr = errs
	cmd.WaitDelay = 10 * time.Second
	return cmd, dir, errs
}

// assertNothingLeft looks for what a run with that process id could have left.
func assertNothingLeft(t *testing.T, pid int, dir string) {
	t.Helper()
	name := fmt.Sprintf("remotegpu-bench-%d", pid)
	if _, err := os.Lstat(filepath.Join(dir, name)); !os.IsNotExist(err) {
		t.Errorf("the run's directory is left: %v", err)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/" + name, "/sys/fs/cgroup/*/" + name} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("cgroups are left: %v", left)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), name) {
		t.Errorf("mounts are left:\n%s", mounts)
	}
	if left := processes(t, name); len(left) > 0 {
		t.Errorf("processes are left: %q", left)
	}
}

// processes are the command lines that have a text in them.
func processes(t *testing.T, text string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range files {
		if line, err := os.ReadFile(file); err == nil && strings.Contains(string(line), text) {
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

func TestMeasuresAndLeavesNothing(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables, testutil.Containerd)
	file := filepath.Join(t.TempDir(), "result.json")
	cmd, dir, errs := bench(t, "-suites", "life", "-runs", "2", "-columns", "go-client,go-client-shared,ctr", "-json", file)
	table, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, errs, table)
	}
	assertNothingLeft(t, cmd.Process.Pid, dir)

	encoded, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var result report.Result
	if err := json.Unmarshal(encoded, &result); err != nil {
		t.Fatal(err)
	}
	if len(result.Suites) != 1 || len(result.Suites[0].Columns) != 3 {
		t.Fatalf("%d suites were measured, want 1 of 3 columns", len(result.Suites))
	}
	life := result.Suites[0]
	for _, column := range life.Columns {
		for _, row := range life.Rows {
			want := 2
			if column.Name == columns.Ctr && row == report.CreatePort {
				want = 0 // it has no network
			}
			if got := column.Summary[row].N; got != want {
				t.Errorf("%s has %d samples of %s, want %d", column.Name, got, row, want)
			}
		}
		if !strings.Contains(string(table), column.Name) {
			t.Errorf("the table has no %s:\n%s", column.Name, table)
		}
	}
}

// Ports needs nothing but the database and sockets.
func TestPortsMeasures(t *testing.T) {
	testutil.Require(t, testutil.Root)
	file := filepath.Join(t.TempDir(), "result.json")
	cmd, dir, errs := bench(t, "-suites", "ports", "-rounds", "2", "-ports", "100", "-json", file)
	if table, err := cmd.Output(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, errs, table)
	}
	assertNothingLeft(t, cmd.Process.Pid, dir)
	encoded, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var result report.Result
	if err := json.Unmarshal(encoded, &result); err != nil {
		t.Fatal(err)
	}
	if len(result.Suites) != 1 || len(result.Suites[0].Columns) != 2 {
		t.Fatalf("measured %s", encoded)
	}
	for _, column := range result.Suites[0].Columns {
		if column.Failure != "" || column.Summary[report.PortsSingly].N != 2 || (column.Summary[report.PortsInFives].N == 2) != (column.Name == columns.RemoteGPU) {
			t.Errorf("column %s: %+v %s", column.Name, column.Summary, column.Failure)
		}
	}
}

// Firewall and Packets need nothing but iptables, nft and namespaces.
func TestRulesMeasure(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	file := filepath.Join(t.TempDir(), "result.json")
	cmd, dir, errs := bench(t, "-suites", "firewall,packets", "-columns", columns.RemoteGPU, "-rounds", "1", "-mappings", "200", "-environments", "50",
		"-connects", "20", "-json", file)
	table, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, errs, table)
	}
	assertNothingLeft(t, cmd.Process.Pid, dir)
	encoded, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var result report.Result
	if err := json.Unmarshal(encoded, &result); err != nil {
		t.Fatal(err)
	}
	for _, suite := range result.Suites {
		for _, target := range suite.Targets {
			if target.Verdict == report.Unjudged {
				t.Errorf("suite %s does not judge %+v", suite.Name, target)
			}
			if target.Of.Row == report.RefusedNFT && target.Value > 0 {
				t.Errorf("%v connections were refused while rules were rewritten", target.Value)
			}
		}
	}
}

// Packets has docker and podman publish ports, and adds the rules of more.
func TestPacketsBesidePeers(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables, testutil.Containerd, testutil.Peers)
	file := filepath.Join(t.TempDir(), "result.json")
	cmd, dir, errs := bench(t, "-require", "-suites", "packets", "-columns", "podman,docker", "-rounds", "1", "-mappings", "200", "-environments", "40",
		"-connects", "20", "-json", file)
	if table, err := cmd.Output(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, errs, table)
	}
	assertNothingLeft(t, cmd.Process.Pid, dir)
	encoded, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var result report.Result
	if err := json.Unmarshal(encoded, &result); err != nil {
		t.Fatal(err)
	}
	measured := 0
	for _, column := range result.Suites[0].Columns {
		if columns.IsPeer(column.Name) && column.Summary[report.HitWorst].N == 1 && column.Summary[report.Miss].N == 1 {
			measured++
		}
	}
	if measured != 2 {
		t.Errorf("measured %s\n%s", encoded, errs)
	}
}

// Each suite takes all its samples, of the bound at least.
func TestEverySuiteMeasures(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables, testutil.Containerd)
	file := filepath.Join(t.TempDir(), "result.json")
	cmd, dir, errs := bench(t, "-suites", "list,parallel,idle,events,logs", "-columns", "go-client,ctr", "-json", file,
		"-pause", "0", "-lists", "2", "-scale", "1", "-bursts", "1", "-burst", "2", "-many", "2", "-idle", "200ms", "-deaths", "2", "-floods", "1", "-flood", "1")
	table, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, errs, table)
	}
	assertNothingLeft(t, cmd.Process.Pid, dir)
	encoded, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var result report.Result
	if err := json.Unmarshal(encoded, &result); err != nil {
		t.Fatal(err)
	}
	if len(result.Suites) != 5 {
		t.Fatalf("%d suites were measured, want 5", len(result.Suites))
	}
	want := map[report.Row]int{report.List1: 2, report.Death: 2}
	for _, suite := range result.Suites {
		if len(suite.Columns) != 1 || suite.Columns[0].Name != columns.GoClient {
			t.Errorf("suite %s has %d columns, want go-client alone", suite.Name, len(suite.Columns))
			continue
		}
		for _, row := range suite.Rows {
			samples := cmp.Or(want[row], 1)
			if suite.Name == report.List && row != report.List1 {
				samples = 0
			}
			idle := row == report.CPU0 || row == report.CPU100 // nothing may have happened
			if got := suite.Columns[0].Summary[row]; got.N != samples || (samples > 0 && got.Median <= 0 && !idle) {
				t.Errorf("suite %s, row %s: %+v, want %d samples", suite.Name, row, got, samples)
			}
		}
	}
}

func TestInterruptLeavesNothing(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables, testutil.Containerd)
	cmd, dir, _ := bench(t, "-suites", "life", "-runs", "100000", "-columns", "go-client")
	errs, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer errs.Close()
	cmd.Stderr = errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := func() string {
		content, err := os.ReadFile(errs.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	deadline := time.Now().Add(2 * time.Minute)
	for !strings.Contains(said(), "round 1 of") {
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			cmd.Wait()
			t.Fatalf("no round was done:\n%s", said())
		}
		time.Sleep(50 * time.Millisecond)
	}
	if len(processes(t, fmt.Sprintf("remotegpu-bench-%d", cmd.Process.Pid))) == 0 {
		t.Error("no process of a running benchmark is found, so none left would be")
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("an interrupted benchmark ends as if it had succeeded")
	}
	assertNothingLeft(t, cmd.Process.Pid, dir)
}
