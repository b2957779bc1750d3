package nvidia_test

import (
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/helper"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/test/fakenvml"
)

// partitioned is an A100 of 40 GB with MIG, which processes may use.
func partitioned(t *testing.T, processes ...fakenvml.Process) (*fakenvml.Library, *helper.Client) {
	t.Helper()
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	library.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{{Model: gpus.A100_SXM4_40GB, Processes: processes}}})
	library.MIGMode(t, 0, true)
	return library, library.Client(t, t.TempDir())
}

func wantReason(t *testing.T, err error, reason problem.Reason, words ...string) {
	t.Helper()
	if problem.Of(err) == nil || problem.Of(err).Reason != reason {
		t.Fatalf("%v is not %s", err, reason)
	}
	for _, word := range words {
		if !strings.Contains(err.Error()+problem.Of(err).Hint, word) {
			t.Errorf("%q (%s) does not say %q", err, problem.Of(err).Hint, word)
		}
	}
}

func create(t *testing.T, client *helper.Client, profile string, start, size int) gpu.MIGInstance {
	t.Helper()
	made, err := client.CreateMIG(t.Context(), fakenvml.UUID(0), profile, gpu.Span{Start: start, Size: size})
	if err != nil {
		t.Fatalf("make %s at %d: %v", profile, start, err)
	}
	return made
}

func TestMIGInstances(t *testing.T) {
	t.Parallel()
	_, client := partitioned(t)
	mig := probe(t, client).Devices[0].MIG
	places := map[string][]gpu.Span{}
	for _, profile := range mig.Profiles {
		places[profile.Name] = profile.Placements
		if profile.Graphics || profile.MemoryBytes == 0 {
			t.Errorf("profile %+v", profile)
		}
	}
	if diff := cmp.Diff([]gpu.Span{{Start: 0, Size: 4}, {Start: 4, Size: 4}}, places["3g.20gb"]); diff != "" || !mig.Enabled || mig.Pending {
		t.Errorf("MIG %+v: %s", mig, diff)
	}

	first := create(t, client, "3g.20gb", 4, 4)
	if first.Profile != "3g.20gb" || !strings.HasPrefix(first.UUID, "MIG-") || first.MemoryBytes < 19<<30 || first.Placement != (gpu.Span{Start: 4, Size: 4}) {
		t.Errorf("made %+v", first)
	}
	for start := range 4 {
		create(t, client, "1g.5gb", start, 1)
	}
	// All eight slices of memory are taken, though only seven of compute are used.
	for _, wanted := range []struct {
		profile string
		at      gpu.Span
	}{{"1g.5gb", gpu.Span{Start: 6, Size: 1}}, {"1g.5gb", gpu.Span{Start: 0, Size: 1}}, {"7g.40gb", gpu.Span{Start: 0, Size: 8}}} {
		_, err := client.CreateMIG(t.Context(), fakenvml.UUID(0), wanted.profile, wanted.at)
		wantReason(t, err, problem.GPUPlacementTaken)
		if !errdefs.IsAlreadyExists(err) {
			t.Errorf("%v is not AlreadyExists", err)
		}
	}
	instances := probe(t, client).Devices[0].MIG.Instances
	if len(instances) != 5 || instances[0] != first {
		t.Errorf("instances %+v", instances)
	}
	for _, instance := range instances[1:] {
		for range 2 { // the second time it is not there
			if err := client.DestroyMIG(t.Context(), instance.UUID); err != nil {
				t.Fatal(err)
			}
		}
	}
	if left := probe(t, client).Devices[0].MIG.Instances; len(left) != 1 || left[0] != first {
		t.Errorf("left %+v", left)
	}
	again := create(t, client, "4g.20gb", 0, 4)
	if again.UUID == instances[1].UUID {
		t.Error("an instance has the UUID of another that was")
	}
}

func TestMIGRefusals(t *testing.T) {
	t.Parallel()
	library, client := partitioned(t)
	at := gpu.Span{Start: 0, Size: 1}
	_, err := client.CreateMIG(t.Context(), "GPU-no", "1g.5gb", at)
	wantReason(t, err, problem.GPUNotFound)
	_, err = client.CreateMIG(t.Context(), fakenvml.UUID(0), "9g.99gb", at)
	wantReason(t, err, problem.GPUNotFound, "1g.5gb", "7g.40gb")
	_, err = client.CreateMIG(t.Context(), fakenvml.UUID(0), "2g.10gb", gpu.Span{Start: 1, Size: 2})
	wantReason(t, err, problem.FieldInvalid, "{0 2} {2 2} {4 2}")
	made := create(t, client, "1g.5gb", 0, 1)
	_, err = client.CreateMIG(t.Context(), made.UUID, "1g.5gb", at)
	wantReason(t, err, problem.FieldInvalid, "is a MIG instance")
	wantReason(t, client.DestroyMIG(t.Context(), fakenvml.UUID(0)), problem.FieldInvalid)

	library.MIGMode(t, 0, false)
	_, err = client.CreateMIG(t.Context(), fakenvml.UUID(0), "1g.5gb", at)
	wantReason(t, err, problem.GPUModeConflict, "mig mode")
	library.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{{Model: plain()}, {Model: gpus.A100_SXM4_40GB, VirtMode: 2}}})
	_, err = client.CreateMIG(t.Context(), fakenvml.UUID(0), "1g.5gb", at)
	wantReason(t, err, problem.GPUUnsupported)
	_, err = client.SetMIGMode(t.Context(), fakenvml.UUID(1), true)
	wantReason(t, err, problem.GPUUnsupported, "only its host")
}

func TestMIGInstanceInUse(t *testing.T) {
	t.Parallel()
	one := 1
	_, client := partitioned(t, fakenvml.Process{Kind: 'c', PID: 4711, MB: 100, GI: &one})
	made := create(t, client, "1g.5gb", 0, 1)
	if made.GPUInstance != one {
		t.Fatalf("made %+v", made)
	}
	err := client.DestroyMIG(t.Context(), made.UUID)
	wantReason(t, err, problem.GPUInUse, "4711")
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("%v is not FailedPrecondition", err)
	}
	usage, err := client.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []gpu.Process{{PID: 4711, MemoryBytes: 100 << 20, MIG: made.UUID, UtilPercent: -1, EncoderPercent: -1, DecoderPercent: -1}}
	if diff := cmp.Diff(want, usage[0].Processes); diff != "" || usage[0].UtilPercent != -1 {
		t.Errorf("usage %+v: %s", usage[0], diff)
	}
}

// What a call that failed, or died, began is gone or is cleared away by the
// next that wants the place.
func TestMIGInstanceThatWasHalfMade(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"fail %s 999", "crash %s"} {
		t.Run(strings.Fields(how)[0], func(t *testing.T) {
			t.Parallel()
			library, client := partitioned(t)
			host := fakenvml.Host{GPUs: []fakenvml.GPU{{Model: gpus.A100_SXM4_40GB}}}
			whole := host
			host.Rules = []string{strings.ReplaceAll(how, "%s", "nvmlGpuInstanceCreateComputeInstance")}
			library.Set(t, host)
			_, err := client.CreateMIG(t.Context(), fakenvml.UUID(0), "1g.5gb", gpu.Span{Start: 2, Size: 1})
			wantReason(t, err, problem.GPUUnavailable)
			library.Set(t, whole)
			if instances := probe(t, client).Devices[0].MIG.Instances; len(instances) != 0 {
				t.Errorf("instances %+v", instances)
			}
			made := create(t, client, "2g.10gb", 2, 2)

			host.Rules = []string{strings.ReplaceAll(how, "%s", "nvmlGpuInstanceDestroy")}
			library.Set(t, host)
			if err := client.DestroyMIG(t.Context(), made.UUID); err == nil {
				t.Fatal("an instance was removed that cannot be")
			}
			library.Set(t, whole)
			create(t, client, "7g.40gb", 0, 8)
		})
	}
}

func TestMIGMode(t *testing.T) {
	t.Parallel()
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	host := fakenvml.Host{GPUs: []fakenvml.GPU{{Model: gpus.A100_SXM4_40GB, ResetForMIG: true}, {Model: gpus.H100_SXM5_80GB}, {Model: plain()}}}
	library.Set(t, host)
	client := library.Client(t, t.TempDir())
	set := func(index int, on, wantReset bool) gpu.MIG {
		t.Helper()
		reset, err := client.SetMIGMode(t.Context(), fakenvml.UUID(index), on)
		if err != nil || reset != wantReset {
			t.Fatalf("mode of GPU %d: reset %v, %v", index, reset, err)
		}
		return probe(t, client).Devices[index].MIG
	}
	for range 2 { // asked again it says the same
		if mig := set(0, true, true); mig.Enabled || !mig.Pending || !mig.ResetNeeded {
			t.Errorf("Ampere: %+v", mig)
		}
	}
	if mig := set(0, false, false); mig.Enabled || mig.Pending {
		t.Errorf("Ampere, taken back: %+v", mig)
	}
	if mig := set(1, true, false); !mig.Enabled || mig.Pending || mig.ResetNeeded {
		t.Errorf("Hopper: %+v", mig)
	}
	if _, err := client.CreateMIG(t.Context(), fakenvml.UUID(1), "1g.10gb", gpu.Span{Start: 0, Size: 1}); err != nil {
		t.Fatal(err)
	}
	_, err := client.SetMIGMode(t.Context(), fakenvml.UUID(1), false)
	wantReason(t, err, problem.GPUInUse)
	_, err = client.SetMIGMode(t.Context(), fakenvml.UUID(2), true)
	wantReason(t, err, problem.GPUUnsupported)
	host.GPUs[0].Processes = []fakenvml.Process{{Kind: 'g', PID: 815}}
	library.Set(t, host)
	_, err = client.SetMIGMode(t.Context(), fakenvml.UUID(0), true)
	wantReason(t, err, problem.GPUInUse, "815")
}
