package gputest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	cdi "tags.cncf.io/container-device-interface/specs-go"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// Driver is a gpu.Driver without GPUs. It outlives daemons as GPUs do. It is
// safe for concurrent use.
type Driver struct {
	// Do does the work of a call ("GPUs.CreateMIG"), or fails it. nil: it works.
	Do func(call string, work func() error) error

	mu       sync.Mutex
	devices  []gpu.Device
	driver   string
	missing  error // of an inventory
	usage    map[string]gpu.Usage
	made     int                         // instances so far
	watchers map[chan gpu.Event][]string // which GPUs
	limits   map[string]uint64           // by GPU and cgroup
	used     map[string]uint64           // by GPU and cgroup
}

var _ gpu.Driver = (*Driver)(nil)

// NewDriver has the given GPUs and driver version "580.1".
func NewDriver(devices ...gpu.Device) *Driver {
	return &Driver{devices: devices, driver: "580.1", usage: make(map[string]gpu.Usage), watchers: make(map[chan gpu.Event][]string), limits: make(map[string]uint64), used: make(map[string]uint64)}
}

func (d *Driver) call(ctx context.Context, name string, work func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	locked := func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		return work()
	}
	if d.Do == nil {
		return locked()
	}
	return d.Do("GPUs."+name, locked)
}

// device finds a GPU. d.mu is held.
func (d *Driver) device(uuid string) (*gpu.Device, error) {
	for i := range d.devices {
		if d.devices[i].UUID == uuid {
			return &d.devices[i], nil
		}
	}
	return nil, problem.New(problem.GPUNotFound, "there is no GPU %s", uuid).WithHint("see nvidia-smi -L")
}

// Probe implements gpu.Driver.
func (d *Driver) Probe(ctx context.Context) (found gpu.Inventory, err error) {
	err = d.call(ctx, "Probe", func() error {
		found = gpu.Inventory{Driver: d.driver, CUDA: "13.0", At: time.Now(), Devices: slices.Clone(d.devices)}
		for i := range found.Devices {
			found.Devices[i].MIG.Instances = slices.Clone(found.Devices[i].MIG.Instances)
		}
		if found.Missing = d.missing; d.missing != nil {
			found.Devices = slices.DeleteFunc(found.Devices, func(d gpu.Device) bool { return d.Vendor == gpu.NVIDIA })
		}
		return nil
	})
	return found, err
}

// Silence has the software of NVIDIA not answer when the inventory is read; nil
// has it answer again.
func (d *Driver) Silence(missing error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.missing = missing
}

// Edits implements gpu.Driver: a node per GPU, and a variable that names what
// was asked for.
func (d *Driver) Edits(ctx context.Context, req gpu.EditsRequest) (edits gpu.Edits, err error) {
	err = d.call(ctx, "Edits", func() error {
		for _, target := range req.Targets {
			device, err := d.device(target.GPU)
			if err != nil {
				return err
			}
			name := target.GPU
			if target.MIG != "" {
				if name = target.MIG; !slices.ContainsFunc(device.MIG.Instances, func(i gpu.MIGInstance) bool { return i.UUID == target.MIG }) {
					return problem.New(problem.MIGInstanceNotFound, "there is no MIG instance %s", target.MIG).WithHint("see nvidia-smi -L")
				}
			}
			edits.CDI.DeviceNodes = append(edits.CDI.DeviceNodes, &cdi.DeviceNode{Path: fmt.Sprintf("/dev/nvidia%d", device.Minor)})
			edits.CDI.Env = append(edits.CDI.Env, "TEST_GPU="+name)
		}
		if slices.Contains(req.Capabilities, gpu.Display) {
			edits.Warnings = append(edits.Warnings, "display is left out")
		}
		return nil
	})
	return edits, err
}

// Usage implements gpu.Driver.
func (d *Driver) Usage(ctx context.Context) (all []gpu.Usage, err error) {
	err = d.call(ctx, "Usage", func() error {
		for i := range d.devices {
			device := &d.devices[i]
			u := d.usage[device.UUID]
			u.UUID = device.UUID
			if u.MemoryFree == 0 {
				u.MemoryFree = device.MemoryBytes - min(device.MemoryBytes, u.MemoryUsed)
			}
			for _, instance := range device.MIG.Instances {
				if !slices.ContainsFunc(u.Instances, func(known gpu.InstanceUsage) bool { return known.UUID == instance.UUID }) {
					profile, _ := device.Profile(instance.Profile)
					u.Instances = append(slices.Clone(u.Instances), gpu.InstanceUsage{UUID: instance.UUID, MemoryFree: profile.MemoryBytes})
				}
			}
			all = append(all, u)
		}
		return nil
	})
	return all, err
}

// Watch implements gpu.Driver.
func (d *Driver) Watch(ctx context.Context, only []string, report func(gpu.Event)) error {
	events := make(chan gpu.Event, 64)
	if err := d.call(ctx, "Watch", func() error { d.watchers[events] = only; return nil }); err != nil {
		return err
	}
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.watchers, events)
	}()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case event := <-events:
			report(event)
		}
	}
}

// CreateMIG implements gpu.Driver.
func (d *Driver) CreateMIG(ctx context.Context, gpuUUID, profile string, at gpu.Span) (made gpu.MIGInstance, err error) {
	err = d.call(ctx, "CreateMIG", func() error {
		device, err := d.device(gpuUUID)
		if err != nil {
			return err
		}
		p, known := device.Profile(profile)
		switch {
		case !device.MIG.Enabled:
			return problem.New(problem.GPUModeConflict, "MIG is off").WithHint("turn it on")
		case !known:
			return problem.New(problem.GPUNotFound, "there is no profile %s", profile).WithHint("use another")
		case !slices.Contains(p.Placements, at):
			return fmt.Errorf("%s at %+v: %w", profile, at, errdefs.ErrInvalidArgument)
		}
		for _, instance := range device.MIG.Instances {
			if instance.Placement.Overlaps(at) {
				return problem.New(problem.GPUPlacementTaken, "%s is at %d", instance.UUID, instance.Placement.Start).WithHint("use another place")
			}
		}
		d.made++
		made = gpu.MIGInstance{
			UUID: fmt.Sprintf("MIG-%08x-0000-4000-8000-000000000000", d.made), Profile: profile, GPUInstance: d.made, Placement: at, MemoryBytes: p.MemoryBytes,
		}
		device.MIG.Instances = append(device.MIG.Instances, made)
		return nil
	})
	return made, err
}

// DestroyMIG implements gpu.Driver.
func (d *Driver) DestroyMIG(ctx context.Context, migUUID string) error {
	return d.call(ctx, "DestroyMIG", func() error {
		for i := range d.devices {
			device := &d.devices[i]
			if slices.ContainsFunc(d.usage[device.UUID].Processes, func(p gpu.Process) bool { return p.MIG == migUUID }) {
				return problem.New(problem.GPUInUse, "a process uses %s", migUUID).WithHint("end it")
			}
			device.MIG.Instances = slices.DeleteFunc(slices.Clone(device.MIG.Instances), func(i gpu.MIGInstance) bool { return i.UUID == migUUID })
		}
		return nil
	})
}

// SetMIGMode implements gpu.Driver.
func (d *Driver) SetMIGMode(ctx context.Context, gpuUUID string, on bool) (resetNeeded bool, err error) {
	err = d.call(ctx, "SetMIGMode", func() error {
		device, err := d.device(gpuUUID)
		if err != nil {
			return err
		}
		if !device.MIG.Capable {
			return problem.New(problem.GPUModeConflict, "%s cannot be partitioned", gpuUUID).WithHint("use another GPU")
		}
		if resetNeeded = device.MIG.ResetNeeded && device.MIG.Enabled != on; resetNeeded {
			device.MIG.Pending = true
			return nil
		}
		device.MIG.Enabled, device.MIG.Pending = on, false
		return nil
	})
	return resetNeeded, err
}

// SetExclusiveProcess implements gpu.Driver.
func (d *Driver) SetExclusiveProcess(ctx context.Context, gpuUUID string, _ bool) error {
	return d.call(ctx, "SetExclusiveProcess", func() error { _, err := d.device(gpuUUID); return err })
}

// SetMemoryLimit implements gpu.Driver.
func (d *Driver) SetMemoryLimit(ctx context.Context, gpuUUID, cgroup string, bytes uint64) error {
	return d.call(ctx, "SetMemoryLimit", func() error {
		_, err := d.device(gpuUUID)
		d.limits[gpuUUID+" "+cgroup] = bytes
		return err
	})
}

// MemoryUsed implements gpu.Driver.
func (d *Driver) MemoryUsed(ctx context.Context, gpuUUID string, cgroups []string) (used map[string]uint64, err error) {
	err = d.call(ctx, "MemoryUsed", func() error {
		used = make(map[string]uint64)
		for _, cgroup := range cgroups {
			if bytes, known := d.used[gpuUUID+" "+cgroup]; known {
				used[cgroup] = bytes
			}
		}
		_, err := d.device(gpuUUID)
		return err
	})
	return used, err
}

// UseMemory sets what the processes of a cgroup have of a GPU's memory.
func (d *Driver) UseMemory(uuid, cgroup string, bytes uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.used[uuid+" "+cgroup] = bytes
}

// Change changes the GPUs and the version of the driver, as the world does.
func (d *Driver) Change(change func(devices []gpu.Device) (changed []gpu.Device, driver string)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	devices, driver := change(d.devices)
	if d.devices = devices; driver != "" {
		d.driver = driver
	}
}

// Use sets what is measured of a GPU.
func (d *Driver) Use(uuid string, usage gpu.Usage) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.usage[uuid] = usage
}

// Happen tells all who watch its GPU of an event, and whether there was one.
func (d *Driver) Happen(event gpu.Event) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	told := false
	for events, only := range d.watchers {
		device, err := d.device(event.UUID)
		if only != nil && err == nil && !slices.Contains(only, device.PCI) {
			continue
		}
		events <- event
		told = true
	}
	return told
}

// Devices are the GPUs as they are.
func (d *Driver) Devices() []gpu.Device {
	d.mu.Lock()
	defer d.mu.Unlock()
	devices := slices.Clone(d.devices)
	for i := range devices {
		devices[i].MIG.Instances = slices.Clone(devices[i].MIG.Instances)
	}
	return devices
}

// Instances names the profiles of all instances by where they are.
func (d *Driver) Instances() map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	found := make(map[string]string)
	for i := range d.devices {
		for _, instance := range d.devices[i].MIG.Instances {
			found[fmt.Sprintf("%d/%d", d.devices[i].Index, instance.Placement.Start)] = instance.Profile
		}
	}
	return found
}

// Limits are the memory limits that are set, by GPU and cgroup.
func (d *Driver) Limits() map[string]uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.limits)
}
