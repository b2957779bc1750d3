package nvidia_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/helper"
	"github.com/remotegpu/remotegpu/test/fakenvml"
)

// watch runs a watch and returns what it reports, once it watches count GPUs.
func watch(t *testing.T, library *fakenvml.Library, client *helper.Client, count int) (events <-chan gpu.Event, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	reported, ended := make(chan gpu.Event, 64), make(chan error, 1)
	go func() { ended <- client.Watch(ctx, nil, func(event gpu.Event) { reported <- event }) }()
	t.Cleanup(cancel)
	watched(t, library, count)
	return reported, func() error { cancel(); return <-ended }
}

// watched waits until as many GPUs were watched since the stand-in was made.
func watched(t *testing.T, library *fakenvml.Library, count int) {
	t.Helper()
	for until := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		lines := slices.DeleteFunc(library.Log(t), func(line string) bool { return !strings.HasPrefix(line, "watched ") })
		if len(lines) >= count {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("after a minute %d of %d GPUs are watched", len(lines), count)
		}
	}
}

func next(t *testing.T, events <-chan gpu.Event) gpu.Event {
	t.Helper()
	select {
	case event := <-events:
		if event.At.IsZero() || event.Detail == "" {
			t.Errorf("event %+v", event)
		}
		event.At = time.Time{}
		return event
	case <-time.After(time.Minute):
		t.Fatal("no event in a minute")
		return gpu.Event{}
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	host := fakenvml.Host{GPUs: []fakenvml.GPU{{Model: gpus.H100_SXM5_80GB}, {Model: plain()}, {Model: plain()}}}
	library.Set(t, host)
	library.MIGMode(t, 0, true)
	client := library.Client(t, t.TempDir())
	made, err := client.CreateMIG(t.Context(), fakenvml.UUID(0), "1g.10gb", gpu.Span{Start: 0, Size: 1})
	if err != nil {
		t.Fatal(err)
	}
	events, stop := watch(t, library, client, 3)

	library.XID(t, 1, 31)
	library.XID(t, 1, 79)
	library.Emit(t, 0, nvml.EventTypeXidCriticalError, 48, uint32(made.GPUInstance), uint32(made.ComputeInstance))
	library.Emit(t, 0, nvml.EventTypeDoubleBitEccError, 0, fakenvml.WholeGPU, fakenvml.WholeGPU)
	library.XID(t, 0, 4242)
	for _, want := range []gpu.Event{
		{UUID: fakenvml.UUID(1), XID: 31, Detail: "XID 31: a program's memory page fault"},
		{UUID: fakenvml.UUID(1), XID: 79, Fatal: true, Detail: "XID 79: the GPU has fallen off the bus"},
		{UUID: fakenvml.UUID(0), MIG: made.UUID, XID: 48, Fatal: true, Detail: "XID 48: a double bit ECC error"},
		{UUID: fakenvml.UUID(0), Detail: "a double bit ECC error"},
		{UUID: fakenvml.UUID(0), XID: 4242, Fatal: true, Detail: "XID 4242"},
	} {
		if got := next(t, events); got != want {
			t.Errorf("event %+v, want %+v", got, want)
		}
	}

	// One is lost: that is told, and the others are watched again.
	host.GPUs[1].Lost = true
	library.Set(t, host)
	if got := next(t, events); got.UUID != fakenvml.UUID(1) || !got.Fatal || !strings.Contains(got.Detail, "does not answer") {
		t.Errorf("event %+v", got)
	}
	watched(t, library, 5)
	library.XID(t, 2, 95)
	if got := next(t, events); got.UUID != fakenvml.UUID(2) || got.XID != 95 || !got.Fatal {
		t.Errorf("event %+v", got)
	}

	// A change of the MIG mode has the GPUs for itself; the watch goes on.
	if err := client.DestroyMIG(t.Context(), made.UUID); err != nil {
		t.Fatal(err)
	}
	if _, err := client.SetMIGMode(t.Context(), fakenvml.UUID(0), false); err != nil {
		t.Fatal(err)
	}
	watched(t, library, 7)
	library.XID(t, 0, 79)
	if got := next(t, events); got.UUID != fakenvml.UUID(0) || got.XID != 79 {
		t.Errorf("event %+v", got)
	}
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("a watch that was stopped: %v", err)
	}
}

// A GPU that is lost takes no other with it, by whichever way it is noticed.
func TestLostGPUIsNotAllGPUs(t *testing.T) {
	t.Parallel()
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	// The set does not tell of a GPU that answers no other call: the look does.
	host := fakenvml.Host{GPUs: []fakenvml.GPU{{Model: plain()}, {Model: plain()}}}
	library.Set(t, host)
	client, events, ended := library.Client(t, t.TempDir()), make(chan gpu.Event, 64), make(chan error, 1)
	go func() { ended <- client.Watch(t.Context(), nil, func(event gpu.Event) { events <- event }) }()
	watched(t, library, 2)
	host.Rules = []string{"fail nvmlDeviceGetMemoryInfo 15 0"}
	library.Set(t, host)
	if got := next(t, events); got.UUID != fakenvml.UUID(0) || !got.Fatal {
		t.Errorf("event %+v", got)
	}
	watched(t, library, 3) // without it
	host.GPUs[0].Lost = true
	library.Set(t, host)
	library.XID(t, 1, 31)
	if got := next(t, events); got.UUID != fakenvml.UUID(1) || got.XID != 31 {
		t.Errorf("event %+v", got)
	}
	// What cannot be looked at is not concluded from.
	host.GPUs[1].Lost, host.Rules = true, []string{"fail nvmlDeviceGetCount_v2 999"}
	library.Set(t, host)
	if err := <-ended; !errdefs.IsUnavailable(err) {
		t.Errorf("the watch ended: %v", err)
	}
	if len(events) > 0 {
		t.Errorf("event %+v", <-events)
	}
}

// A watch of some opens no other, and a question leaves none open.
func TestWhatIsNotWatchedIsClosed(t *testing.T) {
	t.Parallel()
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	library.Set(t, fakenvml.Host{GPUs: []fakenvml.GPU{{Model: plain()}, {Model: plain()}, {Model: plain()}}})
	client := library.Client(t, t.TempDir())
	found := probe(t, client)
	ctx, cancel := context.WithCancel(t.Context())
	reported, ended := make(chan gpu.Event, 64), make(chan error, 1)
	go func() {
		ended <- client.Watch(ctx, []string{found.Devices[0].PCI, found.Devices[2].PCI}, func(event gpu.Event) { reported <- event })
	}()
	watched(t, library, 2)
	if first, left, last := library.Open(t, 0), library.Open(t, 1), library.Open(t, 2); len(first) != 1 || len(left) != 0 || len(last) != 1 {
		t.Errorf("the GPUs are open in %v, %v and %v", first, left, last)
	}
	library.XID(t, 1, 79)
	library.XID(t, 2, 79)
	if got := next(t, reported); got.UUID != fakenvml.UUID(2) {
		t.Errorf("event %+v", got)
	}
	probe(t, client)
	if open := library.Open(t, 1); len(open) > 0 {
		t.Errorf("it is open in %v", open)
	}
	cancel()
	<-ended
	for index := range 3 {
		if open := library.Open(t, index); len(open) > 0 {
			t.Errorf("GPU %d is open in %v after the watch", index, open)
		}
	}
}

func TestWatchThatBreaksIsAnError(t *testing.T) {
	t.Parallel()
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	host := fakenvml.Host{GPUs: []fakenvml.GPU{{Model: plain()}}}
	for _, rule := range []string{"crash nvmlEventSetWait_v2", "fail nvmlEventSetWait_v2 999", "fail nvmlEventSetCreate 999"} {
		host.Rules = []string{rule}
		library.Set(t, host)
		client := library.Client(t, t.TempDir())
		if err := client.Watch(t.Context(), nil, func(gpu.Event) {}); !errdefs.IsUnavailable(err) {
			t.Errorf("%s: %v", rule, err)
		}
		probe(t, client)
		if err := client.Close(); err != nil {
			t.Error(err)
		}
		if err := client.Watch(t.Context(), nil, func(gpu.Event) {}); err == nil {
			t.Error("a client that was closed watches")
		}
	}
	// A GPU that tells no events is not watched, which is said.
	host.Rules = []string{"fail nvmlDeviceRegisterEvents 3"}
	library.Set(t, host)
	events := make(chan gpu.Event, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = library.Client(t, t.TempDir()).Watch(ctx, nil, func(event gpu.Event) { events <- event }) }()
	if got := next(t, events); got.Fatal || !got.Unwatched || !strings.Contains(got.Detail, "cannot be watched") {
		t.Errorf("event %+v", got)
	}
}
