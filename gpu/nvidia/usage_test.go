package nvidia_test

import (
	"path/filepath"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/helper"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/test/fakenvml"
)

func TestUsage(t *testing.T) {
	t.Parallel()
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	library.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{
		{
			Model: plain(), ECC: true, ECCEver: 9, Corrected: 70, Util: 97, UsedMB: 2048, Encoder: 12, Decoder: 3, Temperature: 66, Power: 71500, ECCErrors: 2,
			Processes: []fakenvml.Process{
				{Kind: 'c', PID: 20, MB: 300, Util: 60, Enc: 12, Dec: 3}, {Kind: 'g', PID: 10, MB: 5}, {Kind: 'g', PID: 20, MB: 300}, {Kind: 'm', PID: 30}, {Kind: 'c', PID: 40, MB: 1, Util: 1000},
			},
		},
		{Model: plain(), Lost: true},
		{Model: plain()},
	}})
	client := library.Client(t, t.TempDir())
	got, err := client.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []gpu.Usage{
		{
			UUID: fakenvml.UUID(0), UtilPercent: 97, CopyPercent: 97, MemoryUsed: 2048 << 20, MemoryFree: (23034 - 2048 - 500) << 20, MemoryReserved: 500 << 20,
			EncoderPercent: 12, DecoderPercent: 3, Temperature: 66, PowerMilliwatts: 71500,
			ECCUncorrected: 2, ECCCorrected: 70, ECCUncorrectedEver: 9, ECCCorrectedEver: 70, Processes: []gpu.Process{
				{PID: 10, MemoryBytes: 5 << 20, Graphics: true},
				{PID: 20, MemoryBytes: 300 << 20, Graphics: true, UtilPercent: 60, EncoderPercent: 12, DecoderPercent: 3},
				{PID: 30},
				{PID: 40, MemoryBytes: 1 << 20, UtilPercent: -1},
			},
		},
		{
			UUID: fakenvml.UUID(2), MemoryFree: (23034 - 500) << 20, MemoryReserved: 500 << 20,
			ECCUncorrected: -1, ECCCorrected: -1, ECCUncorrectedEver: -1, ECCCorrectedEver: -1,
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
	// Instances have memory of their own; whose kernels run on them is not told.
	library.MIGMode(t, 0, true)
	world := fakenvml.Host{GPUs: []fakenvml.GPU{{Model: gpus.A100_SXM4_40GB}}}
	library.Set(t, world)
	made, err := client.CreateMIG(t.Context(), fakenvml.UUID(0), "1g.5gb", gpu.Span{Start: 0, Size: 1})
	if err != nil {
		t.Fatal(err)
	}
	world.GPUs[0].Processes = []fakenvml.Process{{Kind: 'c', PID: 20, MB: 300, Util: 60, Enc: 1, GI: &made.GPUInstance}}
	library.Set(t, world)
	got, err = client.Usage(t.Context())
	if err != nil || len(got) != 1 {
		t.Fatalf("usage %+v, %v", got, err)
	}
	onInstance := []gpu.Process{{PID: 20, MemoryBytes: 300 << 20, MIG: made.UUID, UtilPercent: -1, EncoderPercent: -1, DecoderPercent: -1}}
	if diff := cmp.Diff(onInstance, got[0].Processes); diff != "" || got[0].UtilPercent != -1 {
		t.Errorf("on an instance (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]gpu.InstanceUsage{{UUID: made.UUID, MemoryUsed: 300 << 20, MemoryFree: made.MemoryBytes - 300<<20}}, got[0].Instances); diff != "" {
		t.Errorf("instances (-want +got):\n%s", diff)
	}
	// Where it is not known on which instance they are nobody is told that there are none.
	world.Rules = []string{"fail nvmlDeviceGetMaxMigDeviceCount 999 0"}
	world.GPUs = append(world.GPUs, fakenvml.GPU{Model: plain()})
	library.Set(t, world)
	if got, err = client.Usage(t.Context()); err != nil || len(got) != 1 || got[0].UUID != fakenvml.UUID(1) {
		t.Errorf("of a GPU that does not tell its instances: %+v, %v", got, err)
	}
	library = fakenvml.Build(t, t.TempDir(), fakenvml.Version, "nvmlDeviceGetProcessUtilization")
	library.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{{Model: plain(), Processes: []fakenvml.Process{{Kind: 'c', PID: 20, Util: 60}}}}})
	got, err = library.Client(t, t.TempDir()).Usage(t.Context())
	if err != nil || got[0].Processes[0].UtilPercent != -1 {
		t.Errorf("of a driver that does not tell whose kernels run: %+v, %v", got, err)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	root, library := t.TempDir(), fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	library.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{{Model: plain()}}})
	client, uuid := library.Client(t, root), fakenvml.UUID(0)
	limit := func(cgroup string, bytes uint64) error {
		return client.SetMemoryLimit(t.Context(), uuid, cgroup, bytes)
	}
	can := func(client *helper.Client) bool { return probe(t, client).Devices[0].MemoryLimits }
	wantReason(t, limit("/remotegpu/x", 1<<30), problem.GPUUnsupported, "cgroup v2")
	if can(client) {
		t.Error("it is said to limit memory without cgroup v2")
	}
	write(t, filepath.Join(root, "cgroup/cgroup.controllers"), "memory\n")
	for _, bad := range []string{"", "/", "x", "/a/../b", "/a//b"} {
		wantReason(t, limit(bad, 1), problem.FieldInvalid)
	}
	wantReason(t, limit("/x", 1<<40), problem.FieldInvalid, "has less")
	for _, bytes := range []uint64{1 << 30, 0} {
		if err := limit("/remotegpu/x", bytes); err != nil {
			t.Fatal(err)
		}
	}
	for _, on := range []bool{false, true, true, false} { // what is so already is not done
		if err := client.SetExclusiveProcess(t.Context(), uuid, on); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(root, "cgroup/remotegpu/x")
	library.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{{Model: plain(), Cgroups: []fakenvml.Cgroup{{Path: path, MB: 77}}}}})
	used, err := client.MemoryUsed(t.Context(), uuid, []string{"/remotegpu/x", "/remotegpu/gone"})
	if diff := cmp.Diff(map[string]uint64{"/remotegpu/x": 77 << 20}, used); diff != "" || err != nil {
		t.Errorf("used (-want +got):\n%s%v", diff, err)
	}
	want := []string{
		"memory_limits " + uuid + " " + path + " 1073741824 1073741824",
		"memory_limits " + uuid + " " + path + " 0 18446744073709551615",
		"compute_mode " + uuid + " 3", "compute_mode " + uuid + " 0",
	}
	if diff := cmp.Diff(want, library.Log(t)); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	old := fakenvml.Build(t, t.TempDir(), fakenvml.Version, "nvmlDeviceSetMemoryLimits_v1", "nvmlDeviceGetMemoryLimits_v1")
	old.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{{Model: plain()}}})
	without := old.Client(t, root)
	wantReason(t, without.SetMemoryLimit(t.Context(), uuid, "/remotegpu/x", 1), problem.GPUUnsupported, "R615")
	_, err = without.MemoryUsed(t.Context(), uuid, []string{"/remotegpu/x"})
	wantReason(t, err, problem.GPUUnsupported, "R615")
	if !can(client) || can(without) {
		t.Errorf("said to limit memory: the one that does %v, the one that does not %v", can(client), can(without))
	}
}
