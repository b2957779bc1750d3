package cli_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// A field that has parts keeps those that no flag names.
func TestUpdateKeepsWhatIsNotNamed(t *testing.T) {
	f := newFake(t)
	f.ops = []*remotegpuv1.Operation{operation(succeeded, "", 0, 0)}
	command := func(argv ...string) *remotegpuv1.HealthCheck_Command {
		return &remotegpuv1.HealthCheck_Command{Command: &remotegpuv1.HealthCommand{Argv: argv}}
	}
	checked := &remotegpuv1.HealthCheck{
		Check: command("true"), Interval: durationpb.New(7e9), Retries: 9, Timeout: durationpb.New(3e9), StartPeriod: durationpb.New(5e9),
	}
	policy := &remotegpuv1.RestartPolicy{Mode: remotegpuv1.RestartMode_RESTART_MODE_ON_FAILURE, MaxRetries: 3, OnUnhealthy: true}
	f.env.Spec.HealthCheck, f.env.Spec.Restart = checked, policy
	f.env.Spec.Desktop = &remotegpuv1.Desktop{Width: 1280, Height: 720, Depth: 16}
	f.env.Spec.Resources = &remotegpuv1.Resources{Ulimits: []*remotegpuv1.Ulimit{{Name: "nofile", Soft: 1, Hard: 2}, {Name: "core"}}}
	// spec is what the request holds, with one change to what there was.
	spec := func(change func(*remotegpuv1.EnvironmentSpec)) *remotegpuv1.EnvironmentSpec {
		s := &remotegpuv1.EnvironmentSpec{Resources: &remotegpuv1.Resources{}}
		change(s)
		return s
	}
	health := func(change func(*remotegpuv1.HealthCheck)) *remotegpuv1.EnvironmentSpec {
		c := proto.CloneOf(checked)
		change(c)
		return spec(func(s *remotegpuv1.EnvironmentSpec) { s.HealthCheck = c })
	}
	restart := func(mode remotegpuv1.RestartMode, most int32, unhealthy bool) *remotegpuv1.EnvironmentSpec {
		return spec(func(s *remotegpuv1.EnvironmentSpec) {
			s.Restart = &remotegpuv1.RestartPolicy{Mode: mode, MaxRetries: most, OnUnhealthy: unhealthy}
		})
	}
	ulimits := func(all ...*remotegpuv1.Ulimit) *remotegpuv1.EnvironmentSpec {
		return spec(func(s *remotegpuv1.EnvironmentSpec) { s.Resources.Ulimits = all })
	}
	desktop := func(width, height, depth int32) *remotegpuv1.EnvironmentSpec {
		return spec(func(s *remotegpuv1.EnvironmentSpec) {
			s.Desktop = &remotegpuv1.Desktop{Width: width, Height: height, Depth: depth}
		})
	}
	for _, test := range []struct {
		args, path string
		want       *remotegpuv1.EnvironmentSpec
	}{
		{"--health-cmd false", "spec.health_check", health(func(c *remotegpuv1.HealthCheck) { c.Check = command("false") })},
		{"--health-tcp 22", "spec.health_check", health(func(c *remotegpuv1.HealthCheck) {
			c.Check = &remotegpuv1.HealthCheck_Tcp{Tcp: &remotegpuv1.HealthTCP{Port: 22}}
		})},
		{"--health-interval 5s", "spec.health_check", health(func(c *remotegpuv1.HealthCheck) { c.Interval = durationpb.New(5e9) })},
		{"--health-retries 2 --health-timeout 0", "spec.health_check", health(func(c *remotegpuv1.HealthCheck) { c.Retries, c.Timeout = 2, nil })},
		{"--health-start-period 0", "spec.health_check", health(func(c *remotegpuv1.HealthCheck) { c.StartPeriod = nil })},
		{"--restart on-failure:5", "spec.restart", restart(remotegpuv1.RestartMode_RESTART_MODE_ON_FAILURE, 5, true)},
		{"--restart always", "spec.restart", restart(remotegpuv1.RestartMode_RESTART_MODE_ALWAYS, 0, true)},
		{"--restart no", "spec.restart", restart(remotegpuv1.RestartMode_RESTART_MODE_NO, 0, false)},
		{"--restart-unhealthy=false", "spec.restart", restart(remotegpuv1.RestartMode_RESTART_MODE_ON_FAILURE, 3, false)},
		{"--restart-unhealthy", "spec.restart", restart(remotegpuv1.RestartMode_RESTART_MODE_ON_FAILURE, 3, true)},
		{"--ulimit nofile=8", "spec.resources.ulimits", ulimits(&remotegpuv1.Ulimit{Name: "nofile", Soft: 8, Hard: 8}, &remotegpuv1.Ulimit{Name: "core"})},
		{"--ulimit nproc=9", "spec.resources.ulimits", ulimits(&remotegpuv1.Ulimit{Name: "nofile", Soft: 1, Hard: 2}, &remotegpuv1.Ulimit{Name: "core"},
			&remotegpuv1.Ulimit{Name: "nproc", Soft: 9, Hard: 9})},
		{"--desktop=640x480", "spec.desktop", desktop(640, 480, 16)},
		{"--desktop=640x480x24", "spec.desktop", desktop(640, 480, 24)},
		{"--desktop", "spec.desktop", desktop(1280, 720, 16)},
	} {
		code, _, stderr := f.run(t, append([]string{"env", "update", "demo"}, strings.Fields(test.args)...)...)
		request, sent := f.last.(*remotegpuv1.UpdateEnvironmentRequest)
		if code != 0 || !sent {
			t.Errorf("%s: code %d, %s", test.args, code, stderr)
			continue
		}
		if diff := cmp.Diff(test.want, request.GetSpec(), protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", test.args, diff)
		}
		if paths := request.GetUpdateMask().GetPaths(); len(paths) != 1 || paths[0] != test.path || request.GetEtag() != "3" {
			t.Errorf("%s: fields %q, etag %q", test.args, paths, request.GetEtag())
		}
	}
	if code, _, stderr := f.run(t, "env", "update", "demo", "--no-health"); code != 2 || !strings.Contains(stderr, "add --restart-unhealthy=false") {
		t.Errorf("no health check for what is restarted by it: code %d, %s", code, stderr)
	}
	// What the flags say whole is the same request whenever it is repeated.
	for args, paths := range map[string]string{
		"--no-health --restart-unhealthy=false --restart always": "spec.restart spec.health_check",
		"--no-ulimits --ulimit nproc=9":                          "spec.resources.ulimits",
		"--no-desktop":                                           "spec.desktop",
		"--disk 0":                                               "spec.resources.disk_bytes spec.resources.disk_best_effort",
	} {
		code, _, stderr := f.run(t, append([]string{"env", "update", "demo"}, strings.Fields(args)...)...)
		request, _ := f.last.(*remotegpuv1.UpdateEnvironmentRequest)
		if got := strings.Join(request.GetUpdateMask().GetPaths(), " "); code != 0 || got != paths || request.GetEtag() != "" {
			t.Errorf("%s: code %d, %s, fields %s, etag %q", args, code, stderr, got, request.GetEtag())
		}
	}
	f.env.Spec.HealthCheck, f.env.Spec.Restart = nil, &remotegpuv1.RestartPolicy{Mode: remotegpuv1.RestartMode_RESTART_MODE_NO}
	for args, hint := range map[string]string{"--health-interval 5s": "--health-cmd", "--restart-unhealthy": "add --restart on-failure"} {
		if code, _, stderr := f.run(t, append([]string{"env", "update", "demo"}, strings.Fields(args)...)...); code != 2 || !strings.Contains(stderr, hint) {
			t.Errorf("%s without any: code %d, %s", args, code, stderr)
		}
	}
}

// An environment that changes between being read and being changed is read
// again, so that what changed is kept. More than that is told, and so is
// another etag than the one that the caller has seen.
func TestUpdateReadsAgain(t *testing.T) {
	f := newFake(t)
	f.ops = []*remotegpuv1.Operation{operation(succeeded, "", 0, 0)}
	f.env.Labels = map[string]string{"a": "1"}
	times := 0
	overtake := func(most int) func() {
		times = 0
		return func() {
			if times++; times <= most {
				f.env.Etag += "x"
				f.env.Labels = maps.Clone(f.env.GetLabels())
				f.env.Labels[fmt.Sprintf("other%d", times)] = ""
			}
		}
	}
	// A file that can be read once only, as of a shell's <(...).
	variables := filepath.Join(t.TempDir(), "variables")
	if err := os.WriteFile(variables, []byte("A=1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	once := overtake(1)
	f.overtaken = func() { _ = os.Remove(variables); once() }
	code, _, stderr := f.run(t, "env", "update", "demo", "-l", "b=2", "--env-file", variables)
	request, _ := f.last.(*remotegpuv1.UpdateEnvironmentRequest)
	if code != 0 || times != 2 {
		t.Fatalf("code %d after %d requests, %s", code, times, stderr)
	}
	if diff := cmp.Diff(map[string]string{"a": "1", "b": "2", "other1": ""}, request.GetLabels()); diff != "" {
		t.Error(diff)
	}
	if request.GetSpec().GetEnv()["A"] != "1" {
		t.Errorf("variables %q", request.GetSpec().GetEnv())
	}
	f.overtaken = overtake(9)
	if code, _, stderr := f.run(t, "env", "update", "demo", "-l", "b=2"); code == 0 || times != 2 || !strings.Contains(stderr, "has changed") {
		t.Errorf("changed all the time: code %d after %d requests, %s", code, times, stderr)
	}
	f.overtaken = overtake(0)
	if code, _, _ := f.run(t, "env", "update", "demo", "-l", "b=2", "--etag", "old"); code == 0 || times != 1 {
		t.Errorf("with an etag of the caller: code %d after %d requests", code, times)
	}
}

// Nothing in place of a value is what the help says of it, or is refused; where
// the flag has no form of its own, by the node.
func TestUpdateWithEmptyValues(t *testing.T) {
	f := newFake(t)
	f.ops = []*remotegpuv1.Operation{operation(succeeded, "", 0, 0)}
	f.env.Labels, f.env.Spec.Env = map[string]string{"a": "1"}, map[string]string{"A": "1"}
	f.env.Spec.Restart = &remotegpuv1.RestartPolicy{Mode: remotegpuv1.RestartMode_RESTART_MODE_ALWAYS}
	args := []string{"env", "update", "demo", "-l", "a=", "-e", "A=", "--user=", "--workdir=", "--hostname=", "--entrypoint=", "--restart="}
	code, _, stderr := f.run(t, args...)
	request, _ := f.last.(*remotegpuv1.UpdateEnvironmentRequest)
	if code != 0 {
		t.Fatalf("code %d, %s", code, stderr)
	}
	want := &remotegpuv1.EnvironmentSpec{Resources: &remotegpuv1.Resources{}, Env: map[string]string{"A": ""}}
	if diff := cmp.Diff(want, request.GetSpec(), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"a": ""}, request.GetLabels()); diff != "" {
		t.Error(diff)
	}
	for _, flag := range []string{
		"env", "env-file", "label", "publish", "volume", "mount", "ulimit", "unlabel", "unset-env", "unpublish", "unmount", "allow", "disallow",
		"ungroup", "egress", "bandwidth-in", "bandwidth-out", "cpus", "memory", "swap", "shm-size", "disk", "desktop", "gpus", "gpu-mode", "gpu-memory",
		"health-http", "health-desktop=false", "health-interval",
	} {
		arg := "--" + flag
		if !strings.Contains(flag, "=") {
			arg += "="
		}
		if code, _, stderr := f.run(t, "env", "update", "demo", arg); code != 2 {
			t.Errorf("%s: code %d, %s", arg, code, stderr)
		}
	}
}
