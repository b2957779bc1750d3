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
