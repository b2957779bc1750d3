package gpu_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/gputest"
	"github.com/remotegpu/remotegpu/internal/problem"
)

const gib = 1 << 30

func allocate(t *testing.T, books gpu.Books, rules gpu.Rules, env string, req gpu.Request) (gpu.Change, error) {
	t.Helper()
	if err := req.Check("spec.gpu"); err != nil {
		t.Fatal(err)
	}
	return gpu.Allocate(books, rules, env, &req, "spec.gpu")
}

// take allocates and writes the leases into the books.
func take(t *testing.T, books *gpu.Books, rules gpu.Rules, env string, req gpu.Request) []string {
	t.Helper()
	change, err := allocate(t, *books, rules, env, req)
	if err != nil {
		t.Fatalf("%s gets nothing: %v", env, err)
	}
	apply(books, env, change)
	var got []string
	for _, l := range append(change.Keep, change.Add...) {
		got = append(got, l.GPU)
	}
	return got
}

func apply(books *gpu.Books, env string, change gpu.Change) {
	books.Held = slices.DeleteFunc(slices.Clone(books.Held), func(l gpu.Lease) bool {
		return slices.ContainsFunc(change.Drop, func(d gpu.Lease) bool { return d.ID == l.ID && l.EnvID == env })
	})
	for i, l := range change.Add {
		l.ID, l.EnvID = fmt.Sprintf("%s-%d-%d", env, len(books.Held), i), env
		books.Held = append(books.Held, l)
	}
}

func refused(t *testing.T, err error, reason problem.Reason, words ...string) {
	t.Helper()
	p := problem.Of(err)
	if p == nil || p.Reason != reason || p.Hint == "" || !strings.HasPrefix(p.Field, "spec.gpu") {
		t.Fatalf("got %+v, want %s with a field and a hint", p, reason)
	}
	for _, word := range words {
		if !strings.Contains(p.Message+" "+p.Hint, word) {
			t.Errorf("%q does not say %q", p.Message, word)
		}
	}
}

func TestAGPUIsGivenOnce(t *testing.T) {
	books := gpu.Books{Devices: gputest.Plain(2)}
	first := take(t, &books, gpu.Rules{}, "a", gpu.Request{})
	if second := take(t, &books, gpu.Rules{}, "b", gpu.Request{}); slices.Equal(first, second) {
		t.Fatalf("both have %v", first)
	}
	_, err := allocate(t, books, gpu.Rules{}, "c", gpu.Request{})
	refused(t, err, problem.GPUExhausted, "used by a", "used by b")
	_, err = allocate(t, books, gpu.Rules{}, "c", gpu.Request{Mode: gpu.Shared})
	refused(t, err, problem.GPUExhausted)
	_, err = allocate(t, books, gpu.Rules{}, "c", gpu.Request{Count: 3})
	refused(t, err, problem.GPUNotFound, "2 GPUs")
}

func TestPackAndSpread(t *testing.T) {
	for policy, want := range map[gpu.Policy]bool{gpu.Pack: true, gpu.Spread: false} {
		books, rules := gpu.Books{Devices: gputest.Plain(4)}, gpu.Rules{Policy: policy, MaxShared: 2}
		first := take(t, &books, rules, "a", gpu.Request{Mode: gpu.Shared})
		second := take(t, &books, rules, "b", gpu.Request{Mode: gpu.Shared})
		if slices.Equal(first, second) != want {
			t.Errorf("%s gives %v and %v", policy, first, second)
		}
		for i := range 6 {
			take(t, &books, rules, fmt.Sprint(i), gpu.Request{Mode: gpu.Shared})
		}
		_, err := allocate(t, books, rules, "last", gpu.Request{Mode: gpu.Shared})
		refused(t, err, problem.GPUExhausted, "shared by 2 already")
	}
}

func TestLinkedGPUsComeTogether(t *testing.T) {
	devices := gputest.Plain(4) // 0 and 1 on one node, 2 and 3 on the other
	link := func(x, y int) {
		devices[x].Peers, devices[y].Peers = append(devices[x].Peers, devices[y].UUID), append(devices[y].Peers, devices[x].UUID)
	}
	link(0, 2)
	link(1, 3)
	books := gpu.Books{Devices: devices}
	if got := take(t, &books, gpu.Rules{}, "a", gpu.Request{Count: 2}); !slices.Equal(got, []string{devices[0].UUID, devices[2].UUID}) {
		t.Errorf("got %v, which are not linked", got)
	}
	books = gpu.Books{Devices: gputest.Plain(4)}
	take(t, &books, gpu.Rules{}, "one", gpu.Request{UUIDs: []string{books.Devices[1].UUID}})
	if got := take(t, &books, gpu.Rules{}, "two", gpu.Request{}); got[0] != books.Devices[0].UUID {
		t.Errorf("one GPU is taken of the node that was whole: %v", got)
	}
	if got := take(t, &books, gpu.Rules{}, "pair", gpu.Request{Count: 2}); len(got) != 2 {
		t.Errorf("got %v", got)
	}
}

func TestMIGPlacesLeaveTheLargestHole(t *testing.T) {
	books := gpu.Books{Devices: []gpu.Device{gputest.A100(0, true)}}
	var starts []int
	for i := range 3 {
		take(t, &books, gpu.Rules{}, fmt.Sprint(i), gpu.Request{Mode: gpu.MIGMode, Profile: "1g.5gb"})
		starts = append(starts, books.Held[i].Placement.Start)
	}
	// The half with the slices 0 to 3 stays whole, where alone 4g.20gb fits.
	if slices.Min(starts) < 4 {
		t.Fatalf("instances are at %v", starts)
	}
	take(t, &books, gpu.Rules{}, "four", gpu.Request{Mode: gpu.MIGMode, Profile: "4g.20gb"})
	_, err := allocate(t, books, gpu.Rules{}, "more", gpu.Request{Mode: gpu.MIGMode, Profile: "3g.20gb"})
	refused(t, err, problem.GPUExhausted, "no place left for 3g.20gb", "4g.20gb of four")
	_, err = allocate(t, books, gpu.Rules{}, "odd", gpu.Request{Mode: gpu.MIGMode, Profile: "5g.30gb"})
	refused(t, err, problem.GPUNotFound, "1g.5gb")
	_, err = allocate(t, books, gpu.Rules{}, "draws", gpu.Request{Mode: gpu.MIGMode, Profile: "1g.5gb", Capabilities: []gpu.Capability{gpu.Graphics}})
	refused(t, err, problem.GPUCapability, "cannot draw")
	beside := gpu.Books{Devices: append(gputest.Plain(1), books.Devices...), Held: books.Held}
	_, err = allocate(t, beside, gpu.Rules{}, "draws", gpu.Request{Mode: gpu.MIGMode, Profile: "1g.5gb", Capabilities: []gpu.Capability{gpu.Graphics}})
	refused(t, err, problem.GPUCapability, "cannot draw")
	_, err = allocate(t, books, gpu.Rules{}, "whole", gpu.Request{})
	refused(t, err, problem.GPUModeConflict, "MIG is on")
	books.Devices[0].MIG.Enabled, books.Held = false, nil
	_, err = allocate(t, books, gpu.Rules{}, "off", gpu.Request{Mode: gpu.MIGMode, Profile: "1g.5gb"})
	refused(t, err, problem.GPUModeConflict, "MIG is off", "gpu mig mode")
}

func TestInstancesThatExistAreUsedFirst(t *testing.T) {
	device := gputest.A100(0, true)
	device.MIG.Instances = []gpu.MIGInstance{{UUID: "MIG-1", Profile: "1g.5gb", Placement: gpu.Span{Start: 2, Size: 1}}}
	books := gpu.Books{Devices: []gpu.Device{device}}
	take(t, &books, gpu.Rules{}, "a", gpu.Request{Mode: gpu.MIGMode, Profile: "1g.5gb"})
	if l := books.Held[0]; !l.Static || l.Placement.Start != 2 {
		t.Errorf("got %+v", l)
	}
	take(t, &books, gpu.Rules{}, "b", gpu.Request{Mode: gpu.MIGMode, Profile: "1g.5gb"})
	if l := books.Held[1]; l.Static || l.Placement.Overlaps(books.Held[0].Placement) {
		t.Errorf("got %+v", l)
	}
	// What is at its place is found again whatever it is called by now.
	device.MIG.Instances[0].UUID = "MIG-2"
	if found, is := device.InstanceOf(books.Held[0]); !is || found.UUID != "MIG-2" {
		t.Errorf("got %+v", found)
	}
}

func TestSharesAddUp(t *testing.T) {
	books := gpu.Books{Devices: gputest.Plain(1)} // 24 GiB
	rules := gpu.Rules{ReserveBytes: gib, Enforcers: []gpu.Enforcement{gpu.ByDriver, gpu.ByMPS}}
	share := gpu.Request{Mode: gpu.VGPU, MemoryBytes: 10 * gib}
	take(t, &books, rules, "a", share)
	take(t, &books, rules, "b", share)
	if books.Held[0].Enforcement != gpu.ByDriver {
		t.Errorf("enforced by %s", books.Held[0].Enforcement)
	}
	_, err := allocate(t, books, rules, "c", share)
	refused(t, err, problem.GPUExhausted, "3072 MiB left")
	share.MemoryBytes, share.ComputePercent = gib, 30
	_, err = allocate(t, books, rules, "c", share)
	refused(t, err, problem.GPUModeConflict, "enforced otherwise")

	books.Held = nil
	for i := range 3 {
		take(t, &books, rules, fmt.Sprint(i), share)
	}
	_, err = allocate(t, books, rules, "d", share)
	refused(t, err, problem.GPUExhausted, "10 % of its compute left")

	books.Held, rules.Enforcers = nil, nil
	_, err = allocate(t, books, rules, "e", share)
	refused(t, err, problem.GPUNotEnforceable, "allow_unenforced")
	share.AllowUnenforced = true
	take(t, &books, rules, "e", share)
	if books.Held[0].Enforcement != gpu.ByNone {
		t.Errorf("enforced by %s", books.Held[0].Enforcement)
	}
}

// No more share a GPU by MPS than its server has clients.
func TestNoMoreShareAGPUThanMPSServes(t *testing.T) {
	for capability, most := range map[string]int{"8.9": 48, "7.5": 48, "7.0": 16, "6.1": 16, "": 48} {
		devices := gputest.Plain(1)
		devices[0].ComputeCapability = capability
		for _, by := range []gpu.SharedBy{gpu.MPS, gpu.TimeSlicing} {
			books, rules := gpu.Books{Devices: devices}, gpu.Rules{MaxShared: 64, SharedBy: by}
			for i := range most {
				take(t, &books, rules, fmt.Sprint(i), gpu.Request{Mode: gpu.Shared})
			}
			_, err := allocate(t, books, rules, "more", gpu.Request{Mode: gpu.Shared})
			if by == gpu.TimeSlicing {
				if err != nil {
					t.Errorf("%q in turns: %v", capability, err)
				}
				continue
			}
			refused(t, err, problem.GPUExhausted, fmt.Sprint("MPS serves on it, ", most))
		}
	}
}

// An environment is the client of one MPS daemon, which serves one GPU.
func TestSeveralGPUsAreNotSharedByMPS(t *testing.T) {
	books := gpu.Books{Devices: gputest.Plain(2)}
	two := gpu.Request{Mode: gpu.Shared, Count: 2}
	turns := gpu.Rules{Enforcers: []gpu.Enforcement{gpu.ByMPS}, SharedBy: gpu.TimeSlicing}
	served := gpu.Rules{Enforcers: []gpu.Enforcement{gpu.ByMPS}, SharedBy: gpu.MPS}
	take(t, &books, turns, "a", two)
	// It is refused before its start, too, when the node shares otherwise by then.
	for _, env := range []string{"a", "b"} {
		_, err := allocate(t, books, served, env, two)
		refused(t, err, problem.GPUNotEnforceable, "MPS", "one GPU")
		if field := problem.Of(err).Field; field != "spec.gpu.count" {
			t.Errorf("field %s", field)
		}
	}
	take(t, &books, served, "b", gpu.Request{Mode: gpu.Shared})
	books.Held = nil
	share := gpu.Request{Mode: gpu.VGPU, MemoryBytes: gib, Count: 2}
	for _, rules := range []gpu.Rules{turns, served} {
		_, err := allocate(t, books, rules, "a", share)
		refused(t, err, problem.GPUNotEnforceable, "2 GPUs", "one GPU")
	}
	share.AllowUnenforced = true
	_, err := allocate(t, books, served, "a", share)
	refused(t, err, problem.GPUNotEnforceable, "2 GPUs")
	take(t, &books, turns, "a", share)
	if books.Held[0].Enforcement != gpu.ByNone {
		t.Errorf("enforced by %s", books.Held[0].Enforcement)
	}
	books.Held, share.AllowUnenforced = nil, false
	turns.Enforcers = append(turns.Enforcers, gpu.ByCooperation)
	take(t, &books, turns, "a", share)
	if books.Held[0].Enforcement != gpu.ByCooperation {
		t.Errorf("enforced by %s", books.Held[0].Enforcement)
	}
	// What MPS does not serve it is in the way of nothing of.
	amd := []gpu.Device{{UUID: "PCI-0000:0a:00.0", Vendor: gpu.AMD, PCI: "0000:0a:00.0", Index: -1}, {UUID: "PCI-0000:0b:00.0", Vendor: gpu.AMD, PCI: "0000:0b:00.0", Index: -1}}
	take(t, &gpu.Books{Devices: amd}, served, "a", gpu.Request{Mode: gpu.Shared, Count: 2, Capabilities: []gpu.Capability{gpu.Graphics}})
}

// What held a share may have been turned off while its environment was stopped.
func TestShareThatNothingHoldsAnyMoreIsGivenAnew(t *testing.T) {
	books := gpu.Books{Devices: gputest.Plain(1)}
	rules := gpu.Rules{Enforcers: []gpu.Enforcement{gpu.ByMPS}}
	share := gpu.Request{Mode: gpu.VGPU, MemoryBytes: 20 * gib}
	take(t, &books, rules, "a", share)
	if change, err := allocate(t, books, rules, "a", share); err != nil || len(change.Keep) != 1 {
		t.Errorf("nothing is different, and the lease is changed: %+v, %v", change, err)
	}
	rules.Enforcers = []gpu.Enforcement{gpu.ByCooperation}
	change, err := allocate(t, books, rules, "a", share)
	if err != nil || len(change.Drop) != 1 || len(change.Add) != 1 || change.Add[0].Enforcement != gpu.ByCooperation {
		t.Errorf("held otherwise: %+v, %v", change, err)
	}
	rules.Enforcers = nil
	_, err = allocate(t, books, rules, "a", share)
	refused(t, err, problem.GPUNotEnforceable, "allow_unenforced")
}

// No lease says that the driver holds it where the driver cannot.
func TestDriverThatLimitsNothingIsNotCountedOn(t *testing.T) {
	devices := gputest.Plain(1)
	devices[0].MemoryLimits = false
	books := gpu.Books{Devices: devices}
	rules := gpu.Rules{Enforcers: []gpu.Enforcement{gpu.ByDriver}}
	share := gpu.Request{Mode: gpu.VGPU, MemoryBytes: gib}
	_, err := allocate(t, books, rules, "a", share)
	refused(t, err, problem.GPUNotEnforceable, "R615")
	rules.Enforcers = append(rules.Enforcers, gpu.ByMPS)
	take(t, &books, rules, "a", share)
	if books.Held[0].Enforcement != gpu.ByMPS {
		t.Errorf("enforced by %s", books.Held[0].Enforcement)
	}
}

// Where there is no GPU that is the answer, whatever was asked for.
func TestShareWithoutAnyGPU(t *testing.T) {
	_, err := allocate(t, gpu.Books{}, gpu.Rules{}, "a", gpu.Request{Mode: gpu.VGPU, MemoryBytes: gib})
	refused(t, err, problem.GPUNotFound, "no GPU")
}

func TestWhatIsNotWellIsGivenToNobody(t *testing.T) {
	devices := gputest.Plain(2)
	books := gpu.Books{Devices: devices, Marks: []gpu.Mark{
		{GPU: devices[0].UUID, Health: gpu.Health{Unhealthy: true, Reason: "XID 79"}},
		{GPU: devices[1].UUID, Drained: true, Why: "new fan"},
	}}
	_, err := allocate(t, books, gpu.Rules{}, "a", gpu.Request{})
	refused(t, err, problem.GPUDrained, "XID 79", "new fan")
	_, err = allocate(t, books, gpu.Rules{}, "a", gpu.Request{UUIDs: []string{devices[0].UUID}})
	refused(t, err, problem.GPUUnhealthy, "XID 79", "reset-health")
	_, err = allocate(t, books, gpu.Rules{}, "a", gpu.Request{UUIDs: []string{devices[1].UUID}})
	refused(t, err, problem.GPUDrained, "new fan")
	_, err = allocate(t, books, gpu.Rules{}, "a", gpu.Request{UUIDs: []string{"GPU-other"}})
	refused(t, err, problem.GPUNotFound, "GPU-other", "2 × NVIDIA")
	_, err = allocate(t, gpu.Books{}, gpu.Rules{}, "a", gpu.Request{})
	refused(t, err, problem.GPUNotFound, "no GPU")
	_, err = allocate(t, books, gpu.Rules{}, "a", gpu.Request{Models: []string{"H100"}})
	refused(t, err, problem.GPUNotFound, "H100")
}

// What no GPU of the host has is not waited for; what somebody has is.
func TestWhatNoGPUHas(t *testing.T) {
	books := gpu.Books{Devices: append(gputest.Plain(1), gputest.A100(1, true))}
	rules := gpu.Rules{Enforcers: []gpu.Enforcement{gpu.ByMPS}, ReserveBytes: gib}
	for name, test := range map[string]struct {
		req   gpu.Request
		field string
		words string
	}{
		"share":    {gpu.Request{Mode: gpu.VGPU, MemoryBytes: 23*gib + 1}, "spec.gpu.memory_bytes", "23552 MiB for shares"},
		"largest":  {gpu.Request{Mode: gpu.VGPU, MemoryBytes: math.MaxUint64}, "spec.gpu.memory_bytes", "for shares"},
		"instance": {gpu.Request{Mode: gpu.MIGMode, Profile: "1g.5gb", MemoryBytes: 6 * gib}, "spec.gpu.memory_bytes", "2g.10gb"},
	} {
		req := test.req
		if req.Mode == gpu.VGPU {
			req.UUIDs = []string{gputest.UUID(0)}
		}
		_, err := allocate(t, books, rules, "a", req)
		refused(t, err, problem.GPUNotFound, test.words)
		if p := problem.Of(err); p.Field != test.field {
			t.Errorf("%s: the field is %s", name, p.Field)
		}
	}
	take(t, &books, rules, "a", gpu.Request{Mode: gpu.MIGMode, Profile: "1g.5gb", MemoryBytes: 5 * gib})
	take(t, &books, rules, "b", gpu.Request{Mode: gpu.VGPU, MemoryBytes: gpu.MinShare + 1})
	if got := books.Held[1].MemoryBytes; got != gpu.MinShare+1<<20 {
		t.Errorf("a share of %d bytes", got)
	}
	if change, err := allocate(t, books, rules, "b", gpu.Request{Mode: gpu.VGPU, MemoryBytes: gpu.MinShare + 1}); err != nil || len(change.Keep) != 1 {
		t.Errorf("what it has is changed: %+v, %v", change, err)
	}
	books = gpu.Books{Devices: gputest.Plain(2), Marks: []gpu.Mark{{GPU: gputest.UUID(1), Drained: true}}}
	take(t, &books, rules, "a", gpu.Request{})
	_, err := allocate(t, books, rules, "b", gpu.Request{})
	refused(t, err, problem.GPUExhausted, "drained")
}

func TestOthersGPUsDrawOnly(t *testing.T) {
	amd := gpu.Device{UUID: "PCI-0000:0a:00.0", Vendor: gpu.AMD, Model: "Navi 31", PCI: "0000:0a:00.0", Index: -1}
	books := gpu.Books{Devices: []gpu.Device{amd}}
	_, err := allocate(t, books, gpu.Rules{}, "a", gpu.Request{})
	refused(t, err, problem.GPUModeConflict, "only be shared")
	_, err = allocate(t, books, gpu.Rules{}, "a", gpu.Request{Mode: gpu.Shared})
	refused(t, err, problem.GPUNotFound)
	take(t, &books, gpu.Rules{}, "a", gpu.Request{Mode: gpu.Shared, Capabilities: []gpu.Capability{gpu.Graphics}})
}

func TestWhatFitsIsKept(t *testing.T) {
	books := gpu.Books{Devices: gputest.Plain(3)}
	first := take(t, &books, gpu.Rules{}, "a", gpu.Request{})
	if both := take(t, &books, gpu.Rules{}, "a", gpu.Request{Count: 2}); !slices.Contains(both, first[0]) {
		t.Errorf("%v was not kept for %v", first, both)
	}
	change, err := allocate(t, books, gpu.Rules{}, "a", gpu.Request{Mode: gpu.Shared})
	if err != nil || len(change.Drop) != 2 || len(change.Keep) != 0 || len(change.Add) != 1 {
		t.Errorf("got %+v, %v", change, err)
	}
	if change, err := gpu.Allocate(books, gpu.Rules{}, "a", nil, ""); err != nil || len(change.Drop) != 2 || len(change.Add) != 0 {
		t.Errorf("got %+v, %v", change, err)
	}
	// Its GPU has gone: it gets another one.
	books.Devices = slices.DeleteFunc(books.Devices, func(d gpu.Device) bool { return d.UUID == first[0] })
	change, err = allocate(t, books, gpu.Rules{}, "a", gpu.Request{Count: 2})
	if err != nil || len(change.Keep) != 1 || len(change.Drop) != 1 || len(change.Add) != 1 {
		t.Errorf("got %+v, %v", change, err)
	}
}

// A database that was restored has leases that exclude what containers hold since.
func TestWhatOthersExcludeIsNotKept(t *testing.T) {
	whole, part := gputest.UUID(0), gputest.UUID(1)
	at := func(start, size int) gpu.Span { return gpu.Span{Start: start, Size: size} }
	for name, test := range map[string]struct {
		req       gpu.Request
		own, held gpu.Lease
		kept      bool
	}{
		"alone":      {gpu.Request{}, gpu.Lease{GPU: whole, Mode: gpu.Exclusive}, gpu.Lease{GPU: whole, Mode: gpu.Exclusive}, false},
		"mode":       {gpu.Request{Mode: gpu.Shared}, gpu.Lease{GPU: whole, Mode: gpu.Shared}, gpu.Lease{GPU: whole, Mode: gpu.Exclusive}, false},
		"shared":     {gpu.Request{Mode: gpu.Shared}, gpu.Lease{GPU: whole, Mode: gpu.Shared}, gpu.Lease{GPU: whole, Mode: gpu.Shared}, true},
		"place":      {smallest, gpu.Lease{GPU: part, Mode: gpu.MIGMode, Profile: "1g.5gb", Placement: at(1, 1)}, gpu.Lease{GPU: part, Mode: gpu.MIGMode, Profile: "2g.10gb", Placement: at(0, 2)}, false},
		"beside":     {smallest, gpu.Lease{GPU: part, Mode: gpu.MIGMode, Profile: "1g.5gb", Placement: at(2, 1)}, gpu.Lease{GPU: part, Mode: gpu.MIGMode, Profile: "2g.10gb", Placement: at(0, 2)}, true},
		"share":      {quarter, gpu.Lease{GPU: whole, Mode: gpu.VGPU, MemoryBytes: 6 * gib, Enforcement: gpu.ByMPS}, gpu.Lease{GPU: whole, Mode: gpu.VGPU, MemoryBytes: 20 * gib, Enforcement: gpu.ByMPS}, false},
		"share fits": {quarter, gpu.Lease{GPU: whole, Mode: gpu.VGPU, MemoryBytes: 6 * gib, Enforcement: gpu.ByMPS}, gpu.Lease{GPU: whole, Mode: gpu.VGPU, MemoryBytes: 12 * gib, Enforcement: gpu.ByMPS}, true},
	} {
		books := gpu.Books{Devices: append(gputest.Plain(1), gputest.A100(1, true))}
		test.own.EnvID, test.held.EnvID = "a", "unknown"
		books.Held = []gpu.Lease{test.own, test.held}
		change, err := allocate(t, books, gpu.Rules{Enforcers: []gpu.Enforcement{gpu.ByMPS}}, "a", test.req)
		if kept := err == nil && len(change.Keep) == 1; kept != test.kept {
			t.Errorf("%s: got %+v, %v", name, change, err)
		}
		for _, l := range change.Add {
			if l.GPU == test.held.GPU && (l.Mode != gpu.MIGMode || l.Placement.Overlaps(test.held.Placement)) {
				t.Errorf("%s: it gets %+v beside %+v", name, l, test.held)
			}
		}
		// Nor does anybody get what two have by mistake.
		if _, err := allocate(t, books, gpu.Rules{}, "b", gpu.Request{Mode: gpu.Shared}); err == nil && test.own.Mode != test.held.Mode {
			t.Errorf("%s: a third gets it", name)
		}
	}
}

var (
	smallest = gpu.Request{Mode: gpu.MIGMode, Profile: "1g.5gb"}
	quarter  = gpu.Request{Mode: gpu.VGPU, MemoryBytes: 6 * gib}
)

func TestRequestsThatNoHostCouldMeet(t *testing.T) {
	for name, bad := range map[string]struct {
		req   gpu.Request
		field string
	}{
		"mode":       {gpu.Request{Mode: "half"}, "mode"},
		"count":      {gpu.Request{Count: 65}, "count"},
		"negative":   {gpu.Request{Count: -1}, "count"},
		"more named": {gpu.Request{Count: 2, UUIDs: []string{"a"}}, "count"},
		"twice":      {gpu.Request{UUIDs: []string{"a", "a"}}, "uuids[1]"},
		"no profile": {gpu.Request{Mode: gpu.MIGMode}, "profile"},
		"two":        {gpu.Request{Mode: gpu.MIGMode, Profile: "1g.5gb", Count: 2}, "count"},
		"profile":    {gpu.Request{Profile: "1g.5gb"}, "profile"},
		"no memory":  {gpu.Request{Mode: gpu.VGPU}, "memory_bytes"},
		"bytes":      {gpu.Request{Mode: gpu.VGPU, MemoryBytes: 8}, "memory_bytes"},
		"too little": {gpu.Request{Mode: gpu.VGPU, MemoryBytes: gpu.MinShare - 1}, "memory_bytes"},
		"percent":    {gpu.Request{Mode: gpu.VGPU, MemoryBytes: gib, ComputePercent: 101}, "compute_percent"},
		"compute":    {gpu.Request{ComputePercent: 10}, "compute_percent"},
		"unenforced": {gpu.Request{AllowUnenforced: true}, "allow_unenforced"},
		"capability": {gpu.Request{Capabilities: []gpu.Capability{"all"}}, "capabilities[0]"},
	} {
		p := problem.Of(bad.req.Check("spec.gpu"))
		if p == nil || p.Reason != problem.FieldInvalid || p.Field != "spec.gpu."+bad.field || p.Hint == "" {
			t.Errorf("%s: got %+v", name, p)
		}
	}
}

// overlaps finds two leases that cannot both be true, by rules written down a
// second time.
func overlaps(books gpu.Books, rules gpu.Rules) error {
	for _, d := range books.Devices {
		held := books.Leases(d.UUID)
		var memory uint64
		percent := 0
		for i, l := range held {
			memory, percent = memory+l.MemoryBytes, percent+l.ComputePercent
			for _, other := range held[:i] {
				switch {
				case l.Mode != other.Mode, l.Mode == gpu.Exclusive, l.EnvID == other.EnvID && l.Mode != gpu.MIGMode:
					return fmt.Errorf("%+v beside %+v", l, other)
				case l.Mode == gpu.MIGMode && l.Placement.Start < other.Placement.Start+other.Placement.Size && other.Placement.Start < l.Placement.Start+l.Placement.Size:
					return fmt.Errorf("%+v over %+v", l, other)
				case l.Enforcement != other.Enforcement:
					return fmt.Errorf("%+v enforced otherwise than %+v", l, other)
				}
			}
			if l.Mode == gpu.MIGMode {
				p, _ := d.Profile(l.Profile)
				if !slices.Contains(p.Placements, l.Placement) {
					return fmt.Errorf("%+v is no placement", l)
				}
			}
		}
		if len(held) == 0 {
			continue
		}
		if mode := held[0].Mode; mode == gpu.Shared && len(held) > rules.MaxShared || mode == gpu.VGPU && (memory+rules.ReserveBytes > d.MemoryBytes || percent > 100) ||
			d.MIG.Enabled != (mode == gpu.MIGMode) {
			return fmt.Errorf("GPU %s is given beyond what it has: %+v", d.UUID, held)
		}
	}
	return nil
}

func randomRequest(r *rand.Rand, devices []gpu.Device) gpu.Request {
	req := gpu.Request{Mode: []gpu.Mode{gpu.Exclusive, gpu.Shared, gpu.MIGMode, gpu.VGPU}[r.IntN(4)], Count: 1 + r.IntN(3)}
	switch req.Mode {
	case gpu.MIGMode:
		req.Count, req.Profile = 1, []string{"1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb"}[r.IntN(5)]
	case gpu.VGPU:
		req.MemoryBytes, req.ComputePercent, req.AllowUnenforced = uint64(1+r.IntN(20))*gib, r.IntN(60), r.IntN(2) == 0
	case gpu.Exclusive, gpu.Shared:
	}
	if r.IntN(4) == 0 {
		req.UUIDs, req.Count = []string{devices[r.IntN(len(devices))].UUID}, 1
	}
	return req
}

// Whatever is allocated, released, lost in a crash, and found again: no two
// leases ever overlap, and what was given back can be had again.
func TestNoTwoLeasesEverOverlap(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 5))
		devices := append(gputest.Plain(3), gputest.A100(3, true), gputest.A100(4, true), gputest.A100(5, false))
		books := gpu.Books{Devices: devices}
		rules := gpu.Rules{
			Policy: []gpu.Policy{gpu.Pack, gpu.Spread}[r.IntN(2)], MaxShared: 1 + r.IntN(4), ReserveBytes: uint64(r.IntN(2)) * gib,
			Enforcers: [][]gpu.Enforcement{nil, {gpu.ByDriver}, {gpu.ByDriver, gpu.ByMPS}}[r.IntN(3)],
		}
		for step := range 250 {
			env := fmt.Sprintf("env-%d", r.IntN(12))
			switch r.IntN(10) {
			case 0: // released
				change, err := gpu.Allocate(books, rules, env, nil, "")
				if err != nil {
					t.Fatal(err)
				}
				apply(&books, env, change)
			case 1: // drained and undrained
				books.Marks = nil
				if r.IntN(2) == 0 {
					books.Marks = []gpu.Mark{{GPU: devices[r.IntN(len(devices))].UUID, Drained: true}}
				}
			case 2: // instances are made and unmade by the driver, in and beside leases
				d := &devices[3+r.IntN(2)]
				if d.MIG.Instances = nil; r.IntN(2) == 0 {
					for i, l := range books.Leases(d.UUID) {
						d.MIG.Instances = append(d.MIG.Instances, gpu.MIGInstance{UUID: fmt.Sprint(step, i), Profile: l.Profile, Placement: l.Placement})
					}
				}
			default:
				req := randomRequest(r, devices)
				if err := req.Check("gpu"); err != nil {
					t.Fatal(err)
				}
				change, err := gpu.Allocate(books, rules, env, &req, "gpu")
				if err != nil {
					if p := problem.Of(err); p.Reason == problem.Internal || p.Hint == "" {
						t.Fatalf("seed %d: %v", seed, errors.Unwrap(err))
					}
					continue
				}
				if len(change.Keep)+len(change.Add) != req.Count {
					t.Fatalf("seed %d: %+v for %+v", seed, change, req)
				}
				for _, l := range change.Add {
					if books.Mark(l.GPU).Drained {
						t.Fatalf("seed %d: a drained GPU was given", seed)
					}
				}
				if r.IntN(5) == 0 {
					continue // the daemon died before the transaction
				}
				apply(&books, env, change)
			}
			if err := overlaps(books, rules); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
		}
	}
}
