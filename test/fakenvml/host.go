package fakenvml

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvlib/pkg/nvlib/device"
	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
)

// Host is what the stand-in has.
type Host struct {
	Driver string // version; "": Version
	CUDA   int    // as NVML counts, 12080 for 12.8; 0: 13020
	GPUs   []GPU
	// Rules are what functions do: "fail nvmlX 999", "fail nvmlX 999 1" for the
	// GPU 1 alone, "crash nvmlX", "print nvmlX"; "hang nvmlX" until the rule is
	// gone, which is in the log.
	Rules []string
}

// GPU is a GPU of the vendor's mocks (Model), with what they have not.
type GPU struct {
	Model        gpus.Config
	UUID         string // "": made from the index
	PCI          string // "": made from the index
	Minor        int
	ECC          bool
	VirtMode     nvml.GpuVirtualizationMode
	ResetForMIG  bool // a change of the MIG mode stays pending
	RemapFailed  bool
	Recovery     nvml.DeviceGpuRecoveryAction
	Lost         bool
	Links        []int // indices of GPUs at the other ends of NVLinks; -1: a switch
	Util         int   // percent
	UsedMB       int
	Encoder      int
	Decoder      int
	Temperature  int
	Power        int // milliwatts
	ECCErrors    int // uncorrected, since the driver was loaded
	ECCEver      int // uncorrected, of the board
	Corrected    int // since the driver was loaded
	Slowdown     int // degrees, 0: it does not tell
	Shutdown     int // degrees, 0: it does not tell
	Margin       int // degrees to the slowdown of one that does not tell it; 0: it does not tell that either
	Throttled    bool
	Remap        bool     // rows are replaced with the next reset
	Retire       bool     // pages are taken out with the next reset
	Cgroups      []Cgroup // whose memory the driver limits
	Processes    []Process
	WithGraphics bool // a profile of one slice that can draw, besides
}

// Cgroup is a control group, as the driver knows it.
type Cgroup struct {
	Path string
	MB   int // used by its processes
}

// Process is a process on a GPU.
type Process struct {
	Kind byte // c: compute, g: graphics, m: a client of MPS
	PID  int
	MB   int  // 0: not known
	GI   *int // GPU instance that it is on; nil: none
	CI   int
	Util int // percent of the time
	Enc  int // of the encoders
	Dec  int // of the decoders
}

// UUID is the UUID of a GPU that has none of its own.
func UUID(index int) string { return fmt.Sprintf("GPU-%08x-1111-4222-8333-444455556666", index) }

// PCI is the address of a GPU that has none of its own. The bus is one that
// no host has, so that nothing of the host's sysfs belongs to it.
func PCI(index int) string { return fmt.Sprintf("0000:f%x:1f.0", index) }

// Set writes what there is. Callers see it with their next call.
func (l *Library) Set(tb testing.TB, host Host) {
	tb.Helper()
	var text strings.Builder
	fmt.Fprintf(&text, "driver %s\ncuda %d\n", cmp.Or(host.Driver, Version), cmp.Or(host.CUDA, 13020))
	for index, gpu := range host.GPUs {
		gpu.write(&text, index)
	}
	for index, gpu := range host.GPUs { // links name GPUs that follow
		for _, end := range gpu.Links {
			fmt.Fprintf(&text, "link %d %d\n", index, end)
		}
	}
	for _, rule := range host.Rules {
		fmt.Fprintf(&text, "rule %s\n", rule)
	}
	l.replace(tb, "fakenvml.conf", text.String())
}

// Remove takes the configuration away: the driver is not loaded.
func (l *Library) Remove(tb testing.TB) {
	tb.Helper()
	if err := os.Remove(filepath.Join(l.dir, "fakenvml.conf")); err != nil {
		tb.Fatal(err)
	}
}

func (l *Library) replace(tb testing.TB, name, text string) {
	tb.Helper()
	path := filepath.Join(l.dir, name)
	if err := os.WriteFile(path+".tmp", []byte(text), 0o644); err != nil {
		tb.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		tb.Fatal(err)
	}
}

// profileID is what the driver calls a profile: another number than NVML's.
func profileID(number int) int { return 100 + number }

func (g GPU) write(text *strings.Builder, index int) {
	model := g.Model
	fmt.Fprintf(text, "gpu %s %s %d %d %d %d %d %d %d %s\n", cmp.Or(g.UUID, UUID(index)), cmp.Or(g.PCI, PCI(index)), g.Minor,
		model.Architecture, model.CudaMajor, model.CudaMinor, model.MemoryMB, number(g.ECC), g.VirtMode, model.Name)
	fmt.Fprintf(text, "health %d %d %d\n", index, number(g.RemapFailed), g.Recovery)
	fmt.Fprintf(text, "usage %d %d %d %d %d %d %d %d\n", index, g.Util, g.UsedMB, g.Encoder, g.Decoder, g.Temperature, g.Power, g.ECCErrors)
	fmt.Fprintf(text, "vitals %d %d %d %d %d %d %d\n", index, g.Slowdown, g.Shutdown, g.Margin, number(g.Throttled), number(g.Remap), number(g.Retire))
	fmt.Fprintf(text, "ecc %d %d %d %d\n", index, g.ECCEver, g.Corrected, g.Corrected)
	for _, c := range g.Cgroups {
		fmt.Fprintf(text, "cgroup %d %d %s\n", index, c.MB, c.Path)
	}
	if g.Lost {
		fmt.Fprintf(text, "lost %d\n", index)
	}
	for _, p := range g.Processes {
		fmt.Fprintf(text, "process %d %c %d %d", index, p.Kind, p.PID, p.MB)
		if p.GI != nil {
			fmt.Fprintf(text, " %d %d", *p.GI, p.CI)
		}
		text.WriteString("\n")
		if p.Util+p.Enc+p.Dec > 0 {
			fmt.Fprintf(text, "busy %d %d %d %d\n", index, p.Util, p.Enc, p.Dec)
		}
	}
	profiles := model.MIGProfiles
	if len(profiles.GpuInstanceProfiles) == 0 {
		return
	}
	fmt.Fprintf(text, "mig %d 1 %d\n", index, number(g.ResetForMIG))
	for _, id := range slices.Sorted(maps.Keys(profiles.GpuInstanceProfiles)) {
		info := profiles.GpuInstanceProfiles[id]
		g.writeProfile(text, index, id, info, 0)
		if g.WithGraphics && id == nvml.GPU_INSTANCE_PROFILE_1_SLICE {
			g.writeProfile(text, index, nvml.GPU_INSTANCE_PROFILE_1_SLICE_GFX, info, nvml.GPU_INSTANCE_PROFILE_CAPS_GFX)
		}
	}
}

// writeProfile writes a profile with its placements and compute profiles;
// number is NVML's, which the mock's tables go by.
func (g GPU) writeProfile(text *strings.Builder, index, number int, info nvml.GpuInstanceProfileInfo, capabilities int) {
	profiles, table := g.Model.MIGProfiles, int(info.Id)
	fmt.Fprintf(text, "profile %d %d %d %d %d %d %d %s\n", index, number, profileID(number), info.SliceCount, info.InstanceCount,
		info.MemorySizeMB, capabilities, g.profileName(number, info))
	for _, place := range profiles.GpuInstancePlacements[table] {
		fmt.Fprintf(text, "place %d %d %d %d\n", index, profileID(number), place.Start, place.Size)
	}
	for _, id := range slices.Sorted(maps.Keys(profiles.ComputeInstanceProfiles[table])) {
		compute := profiles.ComputeInstanceProfiles[table][id]
		fmt.Fprintf(text, "compute %d %d %d %d %d %d\n", index, number, id, profileID(id), compute.SliceCount, compute.InstanceCount)
	}
}

// profileName is go-nvlib's.
func (g GPU) profileName(number int, info nvml.GpuInstanceProfileInfo) string {
	compute := map[uint32]int{
		1: nvml.COMPUTE_INSTANCE_PROFILE_1_SLICE, 2: nvml.COMPUTE_INSTANCE_PROFILE_2_SLICE, 3: nvml.COMPUTE_INSTANCE_PROFILE_3_SLICE,
		4: nvml.COMPUTE_INSTANCE_PROFILE_4_SLICE, 7: nvml.COMPUTE_INSTANCE_PROFILE_7_SLICE,
	}[info.SliceCount]
	profile, err := device.New(nvml.New()).NewMigProfile(number, compute, 0, info.MemorySizeMB, g.Model.MemoryMB<<20)
	if err != nil {
		return err.Error()
	}
	return profile.String()
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// MIGMode turns MIG on or off, as after a reset.
func (l *Library) MIGMode(tb testing.TB, index int, on bool) {
	tb.Helper()
	l.state(tb, fmt.Sprintf("mode %d %d %d\n", index, number(on), number(on)))
}

// ComputeMode sets the compute mode of a GPU, as an administrator does.
func (l *Library) ComputeMode(tb testing.TB, index int, mode nvml.ComputeMode) {
	tb.Helper()
	l.state(tb, fmt.Sprintf("compute_mode %d %d\n", index, mode))
}

// state adds a line to what callers have changed.
func (l *Library) state(tb testing.TB, line string) {
	tb.Helper()
	path := filepath.Join(l.dir, "fakenvml.state")
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		tb.Fatal(err)
	}
	l.replace(tb, "fakenvml.state", string(text)+line)
}

// Reboot has the host lose what it does with a boot: instances, and the MIG mode
// as from Hopper on.
func (l *Library) Reboot(tb testing.TB) {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join(l.dir, "fakenvml.state"))
	if err != nil && !os.IsNotExist(err) {
		tb.Fatal(err)
	}
	made, _, _ := strings.Cut(string(text), "\n") // so that instances get other UUIDs
	l.replace(tb, "fakenvml.state", made+"\n")
}

// Open are the processes that have a GPU open: with a handle of it, until they
// shut NVML down.
func (l *Library) Open(tb testing.TB, index int) (pids []int) {
	tb.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		tb.Fatal(err)
	}
	dir, err := filepath.EvalSymlinks(l.dir)
	if err != nil {
		tb.Fatal(err)
	}
	for _, link := range links {
		to, err := os.Readlink(link)
		if err != nil || to != filepath.Join(dir, fmt.Sprintf("fakenvml.gpu%d", index)) {
			continue // it may have been closed
		}
		if pid, err := strconv.Atoi(strings.Split(link, "/")[2]); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// WholeGPU is the instance of an event that is about a GPU.
const WholeGPU = 0xFFFFFFFF

// Emit makes an event happen to those that watch. What it is about is in gi
// and ci, or WholeGPU.
func (l *Library) Emit(tb testing.TB, index int, kind, data uint64, gi, ci uint32) {
	tb.Helper()
	file, err := os.OpenFile(filepath.Join(l.dir, "fakenvml.events"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := fmt.Fprintf(file, "%d %d %d %d %d\n", index, kind, data, gi, ci); err != nil {
		tb.Fatal(err)
	}
	if err := file.Close(); err != nil {
		tb.Fatal(err)
	}
}

// XID makes an XID happen to a GPU.
func (l *Library) XID(tb testing.TB, index, xid int) {
	tb.Helper()
	l.Emit(tb, index, nvml.EventTypeXidCriticalError, uint64(xid), WholeGPU, WholeGPU)
}
