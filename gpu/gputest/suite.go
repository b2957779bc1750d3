package gputest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/gpu"
)

// Subject is a driver under test. Its first partitioned GPU has nothing on it
// that the suite may not remove.
type Subject struct {
	Driver gpu.Driver
	// Happen brings about an event of a GPU while it is watched; nil: that
	// cannot be done.
	Happen func(gpu.Event)
	// Ail has the first GPU tell of its state what it is given; nil: that cannot be
	// done.
	Ail func(gpu.Vitals)
}

// Run checks what every driver has to do. subject is called once per check.
func Run(t *testing.T, subject func(t *testing.T) Subject) {
	t.Helper()
	t.Run("Probe", func(t *testing.T) { testProbe(t, subject(t)) })
	t.Run("Instances", func(t *testing.T) { testInstances(t, subject(t)) })
	t.Run("Edits", func(t *testing.T) { testEdits(t, subject(t)) })
	t.Run("Usage", func(t *testing.T) { testUsage(t, subject(t)) })
	t.Run("Vitals", func(t *testing.T) { testVitals(t, subject(t)) })
	t.Run("Watch", func(t *testing.T) { testWatch(t, subject(t)) })
	t.Run("Context", func(t *testing.T) { testContext(t, subject(t)) })
}

func probe(t *testing.T, s Subject) gpu.Inventory {
	t.Helper()
	found, err := s.Driver.Probe(t.Context())
	if err != nil || len(found.Devices) == 0 || found.At.IsZero() {
		t.Fatalf("got %+v, %v", found, err)
	}
	return found
}

func testProbe(t *testing.T, s Subject) {
	t.Helper()
	seen := make(map[string]bool)
	for _, d := range probe(t, s).Devices {
		if d.UUID == "" || seen[d.UUID] || d.PCI == "" || d.Vendor == "" {
			t.Errorf("got %+v", d)
		}
		seen[d.UUID] = true
		for _, p := range d.MIG.Profiles {
			if p.Name == "" || len(p.Placements) == 0 {
				t.Errorf("GPU %s has profile %+v", d.UUID, p)
			}
		}
	}
}

// partitioned is a GPU on which instances can be made, and a profile that fits
// twice.
func partitioned(t *testing.T, s Subject) (gpu.Device, gpu.MIGProfile) {
	t.Helper()
	for _, d := range probe(t, s).Devices {
		for _, p := range d.MIG.Profiles {
			if d.MIG.Enabled && len(p.Placements) > 1 && p.Placements[0].Size == 1 {
				return d, p
			}
		}
	}
	t.Skip("no GPU is partitioned")
	return gpu.Device{}, gpu.MIGProfile{}
}

func testInstances(t *testing.T, s Subject) {
	t.Helper()
	d, p := partitioned(t, s)
	at := p.Placements[0]
	made, err := s.Driver.CreateMIG(t.Context(), d.UUID, p.Name, at)
	if err != nil || made.UUID == "" || made.Placement != at || made.Profile != p.Name {
		t.Fatalf("got %+v, %v", made, err)
	}
	find := func() (gpu.MIGInstance, bool) {
		books := gpu.Books{Devices: probe(t, s).Devices}
		d, _ := books.Device(d.UUID)
		return d.InstanceOf(gpu.Lease{Mode: gpu.MIGMode, Profile: p.Name, Placement: at})
	}
	if found, there := find(); !there || found.UUID != made.UUID {
		t.Errorf("found %+v for %+v", found, made)
	}
	if _, err := s.Driver.CreateMIG(t.Context(), d.UUID, p.Name, at); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a place was given twice: %v", err)
	}
	for range 2 { // what is not there counts as removed
		if err := s.Driver.DestroyMIG(t.Context(), made.UUID); err != nil {
			t.Errorf("got %v", err)
		}
	}
	if found, there := find(); there {
		t.Errorf("%+v is still there", found)
	}
	again, err := s.Driver.CreateMIG(t.Context(), d.UUID, p.Name, at)
	if err != nil || again.Placement != at {
		t.Errorf("got %+v, %v", again, err)
	}
	if err := s.Driver.DestroyMIG(t.Context(), again.UUID); err != nil {
		t.Error(err)
	}
}

func testEdits(t *testing.T, s Subject) {
	t.Helper()
	for _, d := range probe(t, s).Devices {
		if d.Vendor != gpu.NVIDIA || d.MIG.Enabled {
			continue
		}
		edits, err := s.Driver.Edits(t.Context(), gpu.EditsRequest{
			Targets: []gpu.Target{{GPU: d.UUID}}, Capabilities: []gpu.Capability{gpu.Compute, gpu.Utility},
		})
		if err != nil || len(edits.CDI.DeviceNodes) == 0 {
			t.Errorf("GPU %s: got %+v, %v", d.UUID, edits, err)
		}
	}
	if _, err := s.Driver.Edits(t.Context(), gpu.EditsRequest{Targets: []gpu.Target{{GPU: "GPU-00000000-ffff-ffff-ffff-ffffffffffff"}}}); err == nil {
		t.Error("a GPU that is not there has edits")
	}
}

func testUsage(t *testing.T, s Subject) {
	t.Helper()
	all, err := s.Driver.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	measured := make(map[string]bool)
	for _, u := range all {
		measured[u.UUID] = true
	}
	for _, d := range probe(t, s).Devices {
		if d.Vendor == gpu.NVIDIA && !measured[d.UUID] {
			t.Errorf("GPU %s is not measured", d.UUID)
		}
	}
}

func testVitals(t *testing.T, s Subject) {
	t.Helper()
	for _, d := range probe(t, s).Devices {
		v := d.Vitals
		if v.Temperature < 0 || v.ShutdownAt > 0 && v.SlowdownAt > v.ShutdownAt {
			t.Errorf("GPU %s: %+v", d.UUID, v)
		}
	}
	if s.Ail == nil {
		t.Skip("nothing can be brought about")
	}
	count := uint64(7)
	for _, want := range []gpu.Vitals{
		{Temperature: 91, SlowdownAt: 90, ShutdownAt: 100, Throttled: true},
		{Temperature: 60, SlowdownAt: 90, UncorrectedErrors: &count, RemapPending: true},
		{RetirePending: true},
	} {
		s.Ail(want)
		d := probe(t, s).Devices[0]
		if got := d.Vitals; fmt.Sprint(got.Warnings()) != fmt.Sprint(want.Warnings()) || got.SlowdownAt != want.SlowdownAt || got.Temperature != want.Temperature ||
			(want.UncorrectedErrors != nil && (got.UncorrectedErrors == nil || *got.UncorrectedErrors != count)) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if d.Health.Unhealthy {
			t.Errorf("it is unhealthy: %+v", d.Health)
		}
	}
}

func testWatch(t *testing.T, s Subject) {
	t.Helper()
	if s.Happen == nil {
		t.Skip("nothing can be brought about")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	uuid := probe(t, s).Devices[0].UUID
	got, ended := make(chan gpu.Event, 64), make(chan error, 1)
	go func() { ended <- s.Driver.Watch(ctx, nil, func(e gpu.Event) { got <- e }) }()
	want := gpu.Event{UUID: uuid, XID: 79, Fatal: true}
	ticker := time.NewTicker(50 * time.Millisecond) // it may not watch yet
	defer ticker.Stop()
	for seen := false; !seen; {
		select {
		case e := <-got:
			if seen = e.UUID == uuid && e.XID == 79 && e.Fatal; !seen {
				t.Errorf("got %+v", e)
			}
		case err := <-ended:
			t.Fatalf("the watch ended: %v", err)
		case <-ticker.C:
			s.Happen(want)
		}
	}
	cancel()
	for {
		select {
		case <-got:
		case <-ended:
			return
		case <-time.After(30 * time.Second):
			t.Fatal("the watch outlives its context")
		}
	}
}

func testContext(t *testing.T, s Subject) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Driver.Probe(ctx); !errors.Is(err, context.Canceled) && !errdefs.IsCanceled(err) {
		t.Errorf("got %v", err)
	}
}
