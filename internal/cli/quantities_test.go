package cli_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// What cannot be meant is refused before the node is asked.
func TestQuantitiesThatCannotBe(t *testing.T) {
	f := newFake(t)
	for _, args := range []string{
		"env start demo --timeout -1s", "env ls --limit -1", "env ls --page-size -3", "op ls --limit -1", "op ls --limit x", "image ls --page-size 1x",
		"env logs demo --since -5m", "env logs demo --until -1s", "env logs demo --tail -1", "env logs demo -n x", "env logs demo --since yesterday",
		"env logs demo --since 2026-13-01",
	} {
		f.last = nil
		if code, _, stderr := f.run(t, strings.Fields(args)...); code != 2 || f.last != nil || !strings.Contains(stderr, "Try:") {
			t.Errorf("%s: code %d, %s", args, code, stderr)
		}
	}
	// A variable of the shell that is not set is no wish for no limit.
	for _, flag := range []string{"--memory", "--cpus", "--swap", "--shm-size", "--disk"} {
		for _, args := range [][]string{{"env", "create", "demo", "--image", "x", flag, ""}, {"env", "update", "demo", flag, ""}} {
			if code, _, stderr := f.run(t, args...); code != 2 || !strings.Contains(stderr, flag) {
				t.Errorf("%q: code %d, %s", args, code, stderr)
			}
		}
	}
	if code, _, stderr := f.run(t, "env", "create", "demo", "--image", "x", "--gpu-memory", "8X"); code != 2 || !strings.Contains(stderr, `--gpu-memory "8X" is no size`) {
		t.Errorf("code %d, %s", code, stderr)
	}
	for _, args := range []string{"env start demo --timeout 1s", "env ls --limit 1", "env ls --page-size 3", "op ls --limit 0"} {
		if code, _, stderr := f.run(t, strings.Fields(args)...); code != 0 {
			t.Errorf("%s: code %d, %s", args, code, stderr)
		}
	}
}

// Times of logs are written as for docker and podman.
func TestTimesOfLogs(t *testing.T) {
	f := newFake(t)
	f.logged = &logged{}
	last := func() *remotegpuv1.GetLogsRequest {
		if len(f.logged.asked) == 0 {
			return nil
		}
		return f.logged.asked[len(f.logged.asked)-1]
	}
	day := time.Date(2026, 11, 26, 0, 0, 0, 0, time.Local) //nolint:gosmopolitan // so does the command
	for text, want := range map[string]time.Time{
		"2026-11-26": day, "2026-11-26T15:04": day.Add(15*time.Hour + 4*time.Minute), "2026-11-26 15:04:05": day.Add(15*time.Hour + 4*time.Minute + 5*time.Second),
		"1764165600": time.Unix(1764165600, 0), "1764165600.5": time.Unix(1764165600, 5e8), "2026-01-02T15:04:05Z": time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC),
		"2026-01-02T15:04:05+02:00": time.Date(2026, 1, 2, 13, 4, 5, 0, time.UTC),
	} {
		code, _, stderr := f.run(t, "env", "logs", "demo", "-n", "0", "--since", text)
		request := last()
		if code != 0 || request == nil || !request.GetSince().AsTime().Equal(want) || request.Tail == nil {
			t.Errorf("%s: code %d, %v, want %v; %s", text, code, request, want, stderr)
		}
	}
	if code, _, stderr := f.run(t, "env", "logs", "demo", "--tail", "all"); code != 0 || last() == nil || last().Tail != nil {
		t.Errorf("code %d, %v, %s", code, last(), stderr)
	}
}

// No limit of the CPU is written as with docker, and as no limit of memory is;
// what the node refuses is refused here.
func TestCPUs(t *testing.T) {
	f := newFake(t)
	for text, want := range map[string]int64{"0": 0, "0.0": 0, "0.01": 10, "1.5": 1500, "4096": 4096000} {
		code, _, stderr := f.run(t, "env", "create", "demo", "--image", "app", "--no-wait", "--cpus", text, "--memory", "0")
		if resources := f.created.GetSpec().GetResources(); code != 0 || resources.GetCpuMillis() != want || resources.GetMemoryBytes() != 0 {
			t.Errorf("create with %s: code %d, %v, %s", text, code, resources, stderr)
		}
		code, _, stderr = f.run(t, "env", "update", "demo", "--no-wait", "--cpus", text)
		request, _ := f.last.(*remotegpuv1.UpdateEnvironmentRequest)
		if code != 0 || request.GetSpec().GetResources().GetCpuMillis() != want || !slices.Equal(request.GetUpdateMask().GetPaths(), []string{"spec.resources.cpu_millis"}) {
			t.Errorf("update to %s: code %d, %v, %s", text, code, request, stderr)
		}
	}
	for _, text := range []string{"0.009", "-1", "4097", "NaN", ""} {
		for _, command := range []string{"env create demo --image app --no-wait", "env update demo --no-wait"} {
			code, _, stderr := f.run(t, append(strings.Fields(command), "--cpus", text)...)
			if code != 2 || !strings.Contains(stderr, "neither 0 nor a number between 0.01 and 4096") || !strings.Contains(stderr, "Try: ") {
				t.Errorf("%s --cpus %q: code %d, %s", command, text, code, stderr)
			}
		}
	}
}

// Commands that name one thing take several.
func TestSeveralNames(t *testing.T) {
	f := newFake(t)
	if code, stdout, stderr := f.run(t, "env", "get", "demo", "demo"); code != 0 || strings.Count(stdout, "Name:") != 2 {
		t.Errorf("code %d, %s%s", code, stdout, stderr)
	}
	if code, stdout, stderr := f.run(t, "-o", "json", "env", "get", "demo", "demo"); code != 0 || strings.Count(stdout, "\n") != 2 {
		t.Errorf("code %d, %s%s", code, stdout, stderr)
	}
	if code, stdout, stderr := f.run(t, "image", "rm", "a", "b"); code != 0 || strings.Count(stdout, ": deleted\n") != 2 {
		t.Errorf("code %d, %s%s", code, stdout, stderr)
	}
}

// One that cannot be done does not keep the others from being done: each is told
// of, and the first failure decides the exit code.
func TestSeveralOfWhichOneFails(t *testing.T) {
	f := newFake(t)
	f.free = "nosuch"
	f.ops = []*remotegpuv1.Operation{operation(succeeded, "", 0, 0)}
	for args, each := range map[string]string{
		"env get":     "Name:",
		"env stop":    ": stopped\n",
		"image rm":    ": deleted\n",
		"image pin":   ": pinned\n",
		"image unpin": ": unpinned\n",
		"volume rm":   ": deleted\n",

		"env snapshot rm": ": deleted\n",
		"dns rm":          ": removed\n",
		"gpu mig delete":  ": removed\n",
	} {
		want := 2
		names := []string{"a", f.free, "b", f.free}
		if args == "env stop" { // once for each name
			names = names[:3]
		}
		code, stdout, stderr := f.run(t, append(strings.Fields(args), names...)...)
		if code != 3 || strings.Count(stdout, each) != want || strings.Count(stderr, "Error: ") != len(names)-want {
			t.Errorf("%s: code %d, %s%s", args, code, stdout, stderr)
		}
		_, _, stderr = f.run(t, append(strings.Fields("-o json "+args), names...)...)
		if strings.Count(stderr, `{"error":`) != len(names)-want || strings.Contains(stderr, "Error: ") {
			t.Errorf("%s in JSON: %s", args, stderr)
		}
	}
}

// Programs read what is said of several line by line, and see of which it is said.
func TestSeveralInJSON(t *testing.T) {
	f := newFake(t)
	f.ops = []*remotegpuv1.Operation{operation(succeeded, "", 0, 0)}
	for args, says := range map[string][]string{
		"env start a b": {`"id":"01ENV"`, `"id":"01ENV"`}, "env stop a b": {`"id":"01ENV"`, `"id":"01ENV"`},
		"env rm a b":    {`"target":"01ENV"`, `"target":"01ENV"`},
		"env pause a b": {`"id":"01ENV"`, `"id":"01ENV"`}, "env resume a b": {`"id":"01ENV"`, `"id":"01ENV"`},
		"env stop --no-wait a b": {`"id":"01ENV"`, `"id":"01ENV"`}, "env get a b": {`"id":"01ENV"`, `"id":"01ENV"`},
		"env snapshot rm a/1 b/2": {`{"snapshot":"a/1"}`, `{"snapshot":"b/2"}`}, "volume rm a b": {`{"name":"a"}`, `{"name":"b"}`},
		"dns rm 01A 01B": {`{"id":"01A"}`, `{"id":"01B"}`}, "gpu mig delete M-1 GPU-1:4": {`{"instance":"M-1"}`, `{"instance":"GPU-1:4"}`},
		"image rm a b": {`{"name":"docker.io/a"}`, `{"name":"docker.io/b"}`},
	} {
		code, stdout, stderr := f.run(t, append(strings.Fields(args), "-o", "json")...)
		lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
		if code != 0 || len(lines) != 2 || !strings.Contains(lines[0], says[0]) || !strings.Contains(lines[1], says[1]) {
			t.Errorf("%s: code %d, %s%s", args, code, stdout, stderr)
		}
	}
	if code, stdout, stderr := f.run(t, "env", "stop", "a", "-o", "json"); code != 0 || !strings.HasPrefix(stdout, "{\n  \"") {
		t.Errorf("one alone: code %d, %s%s", code, stdout, stderr)
	}
}

// Several are told to end before the first is waited for.
func TestSeveralAreLedAtTheSameTime(t *testing.T) {
	f := newFake(t)
	f.ops = []*remotegpuv1.Operation{operation(remotegpuv1.OperationState_OPERATION_STATE_SUCCEEDED, "", 0, 0)}
	code, stdout, stderr := f.run(t, "env", "stop", "a", "b", "a", "c")
	if code != 0 || stdout != "a: stopped\nb: stopped\nc: stopped\n" {
		t.Errorf("code %d, %s%s", code, stdout, stderr)
	}
	const stop = "StopEnvironmentRequest"
	if want := []string{stop, stop, stop, "WatchOperationRequest"}; len(f.order) < len(want) || !slices.Equal(f.order[:len(want)], want) {
		t.Errorf("asked %q", f.order)
	}
}

// What is refused says what to write instead.
func TestRefusalsSayWhatToWrite(t *testing.T) {
	f := newFake(t)
	for args, want := range map[string]string{
		"env create demo --image x --desktop 800x600": "Try: --desktop=800x600",
		"env create demo --image x --gpus all":        "remotegpu gpu ls",
		"env create demo --image x -m 8X":             `--memory "8X" is no size`,
		"env create demo --image x --tmpfs /x:size=y": `size "y" is no size`,
	} {
		if code, _, stderr := f.run(t, strings.Fields(args)...); code != 2 || !strings.Contains(stderr, want) {
			t.Errorf("%s: code %d, %s", args, code, stderr)
		}
	}
}

// Tables and filters of operations know environments by their names.
func TestOperationsNameEnvironments(t *testing.T) {
	f := newFake(t)
	op := operation(remotegpuv1.OperationState_OPERATION_STATE_SUCCEEDED, "", 0, 0)
	op.Target = f.env.GetId()
	f.ops = []*remotegpuv1.Operation{op}
	code, stdout, stderr := f.run(t, "op", "ls")
	if code != 0 || !strings.Contains(stdout, " "+f.env.GetName()+" ") || strings.Contains(stdout, f.env.GetId()) {
		t.Errorf("code %d, %s%s", code, stdout, stderr)
	}
	for target, want := range map[string]string{f.env.GetName(): f.env.GetId(), "docker.io/a:1": "docker.io/a:1"} {
		f.free = "docker.io/a:1"
		if code, _, stderr := f.run(t, "-o", "json", "op", "ls", "--target", target); code != 0 {
			t.Errorf("code %d, %s", code, stderr)
		}
		request, is := f.last.(*remotegpuv1.ListOperationsRequest)
		if !is || request.GetTarget() != want {
			t.Errorf("--target %s asked for %v", target, f.last)
		}
	}
}

// The tab key offers what a command can do something with.
func TestCompletionsOfWhatThereIs(t *testing.T) {
	f := newFake(t)
	f.ops = []*remotegpuv1.Operation{operation(remotegpuv1.OperationState_OPERATION_STATE_SUCCEEDED, "", 0, 0)}
	if code, stdout, stderr := f.run(t, "__complete", "op", "get", ""); code != 0 || !strings.HasPrefix(stdout, f.ops[0].GetId()) {
		t.Errorf("code %d, %s%s", code, stdout, stderr)
	}
	if request, is := f.last.(*remotegpuv1.ListOperationsRequest); !is || len(request.GetStates()) != 0 {
		t.Errorf("asked for %v", f.last)
	}
	f.run(t, "__complete", "env", "start", "")
	if request, is := f.last.(*remotegpuv1.ListEnvironmentsRequest); !is || len(request.GetStates()) != 2 {
		t.Errorf("asked for %v", f.last)
	}
	if code, stdout, stderr := f.run(t, "__complete", "port", "rm", ""); code != 0 || !strings.HasPrefix(stdout, "22000") {
		t.Errorf("code %d, %s%s", code, stdout, stderr)
	}
}
