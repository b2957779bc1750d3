package containerd

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	cdispec "tags.cncf.io/container-device-interface/specs-go"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

// bare is a spec as render has it before GPUs.
func bare() *specs.Spec {
	return &specs.Spec{
		Process:     &specs.Process{Env: []string{"PATH=/bin", gpu.Void}, User: specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{1000}}},
		Annotations: map[string]string{"cdi.k8s.io/x": "nvidia.com/gpu=all"},
		Mounts:      []specs.Mount{{Destination: "/proc"}, {Destination: "/a/b/c/d/e/f"}},
		Linux:       &specs.Linux{Resources: &specs.LinuxResources{}},
	}
}

// White-box: what a spec becomes is seen here without a runtime.
func TestGPUsGoOverEverything(t *testing.T) {
	before := &gpu.Edits{CDI: cdispec.ContainerEdits{
		Env:            []string{gpu.Void, "CUDA_MPS_PIPE_DIRECTORY=/node", "VK_DRIVER_FILES=/node", "OTHER=1"},
		DeviceNodes:    []*cdispec.DeviceNode{{Path: "/dev/gpu0", HostPath: "/dev/null"}},
		Mounts:         []*cdispec.Mount{{HostPath: "/etc/passwd", ContainerPath: "/usr/lib/libcuda.so"}},
		Hooks:          []*cdispec.Hook{{HookName: "createContainer", Path: "/bin/true", Env: []string{"A=b"}}},
		AdditionalGIDs: []uint32{44},
	}}
	c := &runtime.Container{GPU: before, Env: []string{"VK_DRIVER_FILES=/own", "CUDA_MPS_PIPE_DIRECTORY=/own"}}
	spec := bare()
	spec.Process.Env = append(spec.Process.Env, "VK_DRIVER_FILES=/own")
	gids := append(make([]uint32, 0, 8), 1000)
	spec.Process.User.AdditionalGids = gids
	if err := addGPU(spec, c); err != nil {
		t.Fatal(err)
	}
	env := slices.Sorted(slices.Values(spec.Process.Env))
	if want := []string{"CUDA_MPS_PIPE_DIRECTORY=/node", gpu.Void, "OTHER=1", "PATH=/bin", "VK_DRIVER_FILES=/own"}; !slices.Equal(env, want) {
		t.Errorf("variables: %q, want %q", env, want)
	}
	if got := spec.Mounts[len(spec.Mounts)-1].Destination; got != "/usr/lib/libcuda.so" {
		t.Errorf("the last mount is %s: another could cover those of the GPU", got)
	}
	rules := spec.Linux.Resources.Devices
	if len(rules) != 1 || !rules[0].Allow || *rules[0].Major != 1 || *rules[0].Minor != 3 || rules[0].Access != "rwm" {
		t.Errorf("device rules: %+v", rules)
	}
	if hook := spec.Hooks.CreateContainer[0]; hook.Timeout == nil || *hook.Timeout != hookTimeout {
		t.Errorf("hook: %+v", hook)
	}
	if !slices.Equal(spec.Process.User.AdditionalGids, []uint32{1000, 44}) || gids[:2][1] != 0 {
		t.Errorf("groups: %v; those that were given: %v", spec.Process.User.AdditionalGids, gids[:2])
	}
	if len(spec.Annotations) != 0 {
		t.Errorf("annotations: %v", spec.Annotations)
	}
	if node := before.CDI.DeviceNodes[0]; node.Type != "" || node.Major != 0 || before.CDI.Hooks[0].Timeout != nil || len(before.CDI.Env) != 4 {
		t.Errorf("what was given was changed: %+v", before.CDI)
	}
}

func TestWithoutGPUsNoAnnotationIsLeft(t *testing.T) {
	spec := bare()
	if err := addGPU(spec, &runtime.Container{}); err != nil || len(spec.Annotations) != 0 || spec.Hooks != nil {
		t.Errorf("annotations %v, hooks %v, %v", spec.Annotations, spec.Hooks, err)
	}
}

func TestWhatIsInTheWayOfGPUsIsRefused(t *testing.T) {
	edits := &gpu.Edits{CDI: cdispec.ContainerEdits{Mounts: []*cdispec.Mount{{HostPath: "/etc/passwd", ContainerPath: "/opt/driver/libcuda.so"}}}}
	for _, test := range []struct {
		target         string
		always, forGPU bool
	}{
		{"/run/nvidia-container-devices/0", true, true},
		{"/opt/driver", false, true},
		{"/opt//driver/../driver/libcuda.so", false, true},
		{"/etc/ld.so.conf.d", false, true},
		{"/data", false, false},
	} {
		for gpus, want := range map[*gpu.Edits]bool{nil: test.always, edits: test.forGPU} {
			err := addGPU(bare(), &runtime.Container{GPU: gpus, Mounts: []volume.Staged{{FSType: "tmpfs", Target: test.target}}})
			if p := problem.Of(err); (err != nil) != want || want && (p.Reason != problem.FieldInvalid || p.Field != "spec.mounts" || p.Hint == "") {
				t.Errorf("a mount at %s, GPUs %v: %v, want it refused: %v", test.target, gpus != nil, err, want)
			}
		}
	}
}

func TestEditsThatHaveGoneStaleAreRefused(t *testing.T) {
	for name, edits := range map[string]cdispec.ContainerEdits{
		"a library":      {Mounts: []*cdispec.Mount{{HostPath: "/nowhere/libcuda.so", ContainerPath: "/usr/lib/libcuda.so"}}},
		"a node":         {DeviceNodes: []*cdispec.DeviceNode{{Path: "/dev/nvidia0", HostPath: "/nowhere/nvidia0"}}},
		"no node":        {DeviceNodes: []*cdispec.DeviceNode{{Path: "/dev/nvidia0", HostPath: "/etc/passwd"}}},
		"a bad variable": {Env: []string{"=x"}},
		"a bad stage":    {Hooks: []*cdispec.Hook{{HookName: "later", Path: "/bin/true", Env: []string{"A=b"}}}},
	} {
		err := addGPU(bare(), &runtime.Container{GPU: &gpu.Edits{CDI: edits}})
		if p := problem.Of(err); p == nil || p.Reason != problem.GPUInjectionFailed || p.Hint == "" {
			t.Errorf("%s: %v, want GPU_INJECTION_FAILED with a hint", name, err)
		}
	}
}

// Hooks run as root on the host: only root may be able to say what they do.
func TestHooksThatOthersCouldChangeAreRefused(t *testing.T) {
	testutil.Require(t, testutil.Root)
	dir := t.TempDir()
	write := func(name string, mode os.FileMode, uid int) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{os.WriteFile(path, []byte("#!/bin/sh\n"), 0o600), os.Chmod(path, mode), os.Chown(path, uid, 0)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	good := write("good", 0o755, 0)
	link := filepath.Join(dir, "link")
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	open := write("open/hook", 0o755, 0)
	theirs := write("theirs/hook", 0o755, 0)
	for _, err := range []error{os.Chmod(filepath.Dir(open), 0o777), os.Chown(filepath.Dir(theirs), 1000, 0)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"PATH=/bin"}
	for name, test := range map[string]struct {
		path string
		env  []string
		want problem.Reason
	}{
		"a good one":                      {good, env, ""},
		"a link to it":                    {link, env, ""},
		"no environment":                  {good, nil, problem.GPUInjectionFailed},
		"an empty one, which is left out": {good, []string{}, problem.GPUInjectionFailed},
		"relative":                        {"hook", env, problem.GPUInjectionFailed},
		"missing":                         {filepath.Join(dir, "missing"), env, problem.GPUToolkitMissing},
		"a directory":                     {dir, env, problem.GPUInjectionFailed},
		"not executable":                  {write("plain", 0o644, 0), env, problem.GPUInjectionFailed},
		"another's":                       {write("another", 0o755, 1000), env, problem.GPUInjectionFailed},
		"written by its group":            {write("group", 0o775, 0), env, problem.GPUInjectionFailed},
		"written by all":                  {write("all", 0o757, 0), env, problem.GPUInjectionFailed},
		"in a directory of all":           {open, env, problem.GPUInjectionFailed},
		"in a directory of another":       {theirs, env, problem.GPUInjectionFailed},
	} {
		for _, stage := range []string{"prestart", "createRuntime", "createContainer", "poststart", "poststop"} {
			err := addGPU(bare(), &runtime.Container{GPU: &gpu.Edits{CDI: cdispec.ContainerEdits{
				Hooks: []*cdispec.Hook{{HookName: stage, Path: test.path, Env: test.env}},
			}}})
			if p := problem.Of(err); test.want == "" && err != nil || test.want != "" && (p == nil || p.Reason != test.want || p.Hint == "") {
				t.Errorf("%s at %s: %v, want %q", name, stage, err, test.want)
			}
		}
	}
	err := addGPU(bare(), &runtime.Container{GPU: &gpu.Edits{CDI: cdispec.ContainerEdits{
		Hooks: []*cdispec.Hook{{HookName: "startContainer", Path: good, Env: env}},
	}}})
	if p := problem.Of(err); p == nil || p.Reason != problem.GPUInjectionFailed {
		t.Errorf("a hook that runs inside: %v", err)
	}
}

func TestFilesOfHooksAreKnownByName(t *testing.T) {
	for name, want := range map[string]bool{
		"zz-nvcr-123.conf": true, "00-nvcr-9.conf": true, "zz-nvcr-.conf": true, "nvidia.conf": false, "zz-nvcr-1": false, "x-zz-nvcr-1.conf": false,
		"libc.conf": false,
	} {
		if got := leftByHook(name); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}
