package nvidia

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/remotegpu/remotegpu/gpu"
)

const (
	// waitSlice is how long NVML waits at a time: it knows no context, and what
	// ends a watch at once ends its process.
	waitSlice = 5 * time.Second
	// lookEvery is how often it is looked for GPUs that have gone without an
	// event, or that are back.
	lookEvery = 10 * time.Second

	wholeGPU = 0xFFFFFFFF // of an event's instances
)

// Watch implements gpu.Driver. It keeps the GPUs open: while it runs, the
// driver cannot be unloaded nor one of them be reset. NVML opens a GPU when it is
// asked for its handle, and by its PCI address that one alone
// (nvmlDeviceGetHandleByPciBusId_v2).
func (d *Driver) Watch(ctx context.Context, only []string, report func(gpu.Event)) error {
	s, err := d.driver()
	if err != nil {
		return err
	}
	defer s.close()
	w := watcher{session: s, only: only, report: report, lost: map[string]bool{}}
	if err := w.register(); err != nil {
		return err
	}
	defer func() { _ = w.set.Free() }() // the process ends
	looked, renewed := time.Now(), false
	for ctx.Err() == nil {
		event, ret := w.set.Wait(uint32(waitSlice.Milliseconds()))
		switch ret {
		case nvml.SUCCESS:
			w.handle(event)
			renewed = false
		case nvml.ERROR_TIMEOUT:
			renewed = false
		case nvml.ERROR_GPU_IS_LOST:
			if err := w.someLost(renewed); err != nil {
				return err
			}
			renewed = true
		default:
			return failure(ret, "wait for events")
		}
		if time.Since(looked) >= lookEvery {
			changed, err := w.look()
			if err != nil {
				return err
			}
			if changed {
				if err := w.register(); err != nil {
					return err
				}
			}
			looked = time.Now()
		}
	}
	return context.Cause(ctx)
}

// someLost is about a set that gives no events any more since a GPU of it is
// lost. Which one is not said; another set has those that answer. renewed says
// that this set has just been made.
func (w *watcher) someLost(renewed bool) error {
	changed, err := w.look()
	switch {
	case err != nil:
		return err // which are lost is not known
	case !renewed || changed:
		return w.register()
	case len(w.lost) == 0:
		w.report(gpu.Event{Fatal: true, Detail: "a GPU is lost, and none can be watched", At: time.Now()})
	}
	return failure(nvml.ERROR_GPU_IS_LOST, "wait for events")
}

type watcher struct {
	*session
	only    []string // PCI addresses; nil: all
	report  func(gpu.Event)
	set     nvml.EventSet
	handles map[string]nvml.Device // by UUID, of those that are watched
	lost    map[string]bool        // what was told, by UUID
}

// watched are the handles of the GPUs to watch that answer.
func (w *watcher) watched() ([]nvml.Device, error) {
	var found []nvml.Device
	if w.only == nil {
		handles, _, err := w.all()
		for _, index := range slices.Sorted(maps.Keys(handles)) {
			found = append(found, handles[index])
		}
		return found, err
	}
	silent := make(map[int]nvml.Return)
	for i, address := range w.only {
		handle, ret := w.lib.DeviceGetHandleByPciBusId(address)
		switch ret {
		case nvml.SUCCESS:
			found = append(found, handle)
		case nvml.ERROR_NOT_FOUND: // it has gone, which the inventory tells
		default:
			silent[i] = ret
		}
	}
	return found, noneAnswers(len(found), silent)
}

// register makes an event set of all GPUs to watch that answer.
func (w *watcher) register() error {
	if w.set != nil {
		_ = w.set.Free() // it is of no use
	}
	set, ret := w.lib.EventSetCreate()
	if ret != nvml.SUCCESS {
		return failure(ret, "make an event set")
	}
	w.set = set
	handles, err := w.watched()
	if err != nil {
		return err
	}
	w.handles = make(map[string]nvml.Device, len(handles))
	events, failed := 0, error(nil)
	for _, handle := range handles {
		uuid, ret := handle.GetUUID()
		if ret != nvml.SUCCESS || w.lost[uuid] {
			continue
		}
		w.handles[uuid] = handle
		supported, ret := handle.GetSupportedEventTypes()
		wanted := uint64(nvml.EventTypeXidCriticalError|nvml.EventTypeDoubleBitEccError|nvml.EventTypeGpuUnavailableError) & supported
		if ret == nvml.SUCCESS && wanted != 0 {
			ret = handle.RegisterEvents(wanted, set)
		}
		switch {
		case ret == nvml.SUCCESS && wanted != 0:
			events++
		case ret == nvml.SUCCESS, ret == nvml.ERROR_NOT_SUPPORTED:
			w.report(gpu.Event{UUID: uuid, Unwatched: true, Detail: "its errors cannot be watched: the driver tells none", At: time.Now()})
		case isLost(ret):
			delete(w.handles, uuid)
			w.tellLost(uuid, ret)
		default:
			failed = failure(ret, "watch GPU %s", uuid)
			w.report(gpu.Event{UUID: uuid, Unwatched: true, Detail: "its errors cannot be watched: " + ret.Error(), At: time.Now()})
		}
	}
	if events == 0 {
		return failed
	}
	return nil
}

// look finds GPUs that do not answer any more, which it tells, and whether
// others are to be watched than are.
func (w *watcher) look() (changed bool, err error) {
	handles, err := w.watched()
	if err != nil {
		return false, err
	}
	answer := make(map[string]bool, len(handles))
	for _, handle := range handles {
		if _, ret := handle.GetMemoryInfo(); isLost(ret) {
			continue
		}
		if uuid, ret := handle.GetUUID(); ret == nvml.SUCCESS {
			answer[uuid] = true
			delete(w.lost, uuid) // it was reset; whether it may be used again is decided elsewhere
			changed = changed || w.handles[uuid] == nil
		}
	}
	for uuid := range w.handles {
		if !answer[uuid] {
			changed = true
			if !w.lost[uuid] {
				w.tellLost(uuid, nvml.ERROR_GPU_IS_LOST)
			}
		}
	}
	return changed, nil
}

func (w *watcher) tellLost(uuid string, ret nvml.Return) {
	w.lost[uuid] = true
	w.report(gpu.Event{UUID: uuid, Fatal: true, Detail: "it does not answer: " + ret.Error(), At: time.Now()})
}

// handle reports an event of NVML's.
func (w *watcher) handle(event nvml.EventData) {
	found := gpu.Event{At: time.Now(), UUID: w.uuidOf(event.Device)}
	switch event.EventType {
	case nvml.EventTypeXidCriticalError:
		found.XID = int(event.EventData)
		found.Fatal, found.Detail = isFatal(found.XID), describe(found.XID)
		if event.GpuInstanceId != wholeGPU && event.ComputeInstanceId != wholeGPU && found.UUID != "" {
			uuids, _ := w.instanceUUIDs(w.handles[found.UUID])
			found.MIG = uuids[[2]uint32{event.GpuInstanceId, event.ComputeInstanceId}]
		}
	case nvml.EventTypeDoubleBitEccError: // an XID comes with it
		found.Detail = "a double bit ECC error"
	case nvml.EventTypeGpuUnavailableError:
		found.Fatal, found.Detail = true, "the GPU has become unavailable"
	default:
		return
	}
	w.report(found)
}

// uuidOf is "" for all GPUs: which one it is cannot be read, as of one that
// has just been lost.
func (w *watcher) uuidOf(device nvml.Device) string {
	for uuid, handle := range w.handles {
		if handle == device {
			return uuid
		}
	}
	if uuid, ret := device.GetUUID(); ret == nvml.SUCCESS {
		return uuid
	}
	return ""
}
