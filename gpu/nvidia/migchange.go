package nvidia

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// CreateMIG implements gpu.Driver. What a call that died left at the place, a
// GPU instance that nothing can use, is removed first.
func (d *Driver) CreateMIG(ctx context.Context, gpuUUID, profileName string, at gpu.Span) (gpu.MIGInstance, error) {
	s, err := d.driver()
	if err != nil {
		return gpu.MIGInstance{}, err
	}
	defer s.close()
	handle, profiles, err := s.partitioned(gpuUUID)
	if err != nil {
		return gpu.MIGInstance{}, err
	}
	if !s.has("nvmlDeviceCreateGpuInstanceWithPlacement") {
		return gpu.MIGInstance{}, unsupported("the driver is too old to make MIG instances at a place")
	}
	index := slices.IndexFunc(profiles, func(p profile) bool { return p.Name == profileName })
	if index < 0 {
		return gpu.MIGInstance{}, problem.New(problem.GPUNotFound, "GPU %s has no MIG profile %q", gpuUUID, profileName).
			WithHint("it has: %s", names(profiles))
	}
	if !slices.Contains(profiles[index].Placements, at) {
		return gpu.MIGInstance{}, problem.New(problem.FieldInvalid, "MIG profile %s has no placement at %d of size %d", profileName, at.Start, at.Size).
			WithHint("it has: %v", profiles[index].Placements)
	}
	if err := s.clear(gpuUUID, handle, profiles, at); err != nil {
		return gpu.MIGInstance{}, err
	}
	if err := ctx.Err(); err != nil {
		return gpu.MIGInstance{}, context.Cause(ctx)
	}
	gi, ret := handle.CreateGpuInstanceWithPlacement(&profiles[index].info, &nvml.GpuInstancePlacement{Start: uint32(at.Start), Size: uint32(at.Size)})
	if ret == nvml.ERROR_INSUFFICIENT_RESOURCES {
		return gpu.MIGInstance{}, taken(gpuUUID, at)
	}
	if ret != nvml.SUCCESS {
		return gpu.MIGInstance{}, failure(ret, "make a MIG instance %s on GPU %s", profileName, gpuUUID)
	}
	made, err := s.fill(handle, gi, profiles)
	if err != nil {
		if ret := gi.Destroy(); ret != nvml.SUCCESS {
			err = errors.Join(err, failure(ret, "remove the GPU instance that was begun"))
		}
		return gpu.MIGInstance{}, err
	}
	return made.MIGInstance, nil
}

func names(profiles []profile) string {
	var names []string
	for _, p := range profiles {
		names = append(names, p.Name)
	}
	return strings.Join(names, ", ")
}

func taken(gpuUUID string, at gpu.Span) error {
	return problem.New(problem.GPUPlacementTaken, "the place %d to %d of GPU %s is taken by a MIG instance", at.Start, at.Start+at.Size-1, gpuUUID).
		WithHint("choose one of those that are free, see: remotegpu gpu get %s", gpuUUID)
}

// partitioned finds a GPU whose MIG mode is on, with its profiles.
func (s *session) partitioned(uuid string) (nvml.Device, []profile, error) {
	handle, err := s.whole(uuid)
	if err != nil {
		return nil, nil, err
	}
	if err := s.migCapable(uuid, handle); err != nil {
		return nil, nil, err
	}
	current, _, ret := handle.GetMigMode()
	if ret != nvml.SUCCESS {
		return nil, nil, failure(ret, "read the MIG mode of GPU %s", uuid)
	}
	if current != nvml.DEVICE_MIG_ENABLE {
		return nil, nil, problem.New(problem.GPUModeConflict, "MIG is off on GPU %s", uuid).
			WithHint("turn it on while the GPU is idle: remotegpu gpu mig mode %s on", uuid)
	}
	memory, ret := handle.GetMemoryInfo()
	if ret != nvml.SUCCESS {
		return nil, nil, failure(ret, "read the memory of GPU %s", uuid)
	}
	profiles, ret := s.profiles(handle, memory.Total)
	if ret != nvml.SUCCESS {
		return nil, nil, failure(ret, "read the MIG profiles of GPU %s", uuid)
	}
	return handle, profiles, nil
}

func (s *session) migCapable(uuid string, handle nvml.Device) error {
	if s.has("nvmlDeviceGetMigMode") {
		_, _, ret := handle.GetMigMode()
		if ret == nvml.SUCCESS {
			if virtualization(handle, &check{}) == vgpuGuest {
				return unsupported("GPU %s is a share of one: only its host can partition it", uuid)
			}
			return nil
		}
		if ret != nvml.ERROR_NOT_SUPPORTED {
			return failure(ret, "read the MIG mode of GPU %s", uuid)
		}
	}
	return unsupported("GPU %s has no MIG", uuid)
}

// clear removes GPU instances at a place that have no compute instance.
// GPU_PLACEMENT_TAKEN when one has.
func (s *session) clear(gpuUUID string, handle nvml.Device, profiles []profile, at gpu.Span) error {
	for _, p := range profiles {
		instances, ret := handle.GetGpuInstances(&p.info)
		if ret != nvml.SUCCESS && ret != nvml.ERROR_NOT_SUPPORTED {
			return failure(ret, "list the GPU instances of GPU %s", gpuUUID)
		}
		for _, gi := range instances {
			info, ret := gi.GetInfo()
			if ret != nvml.SUCCESS {
				return failure(ret, "look at a GPU instance of GPU %s", gpuUUID)
			}
			if !overlap(span(info.Placement), at) {
				continue
			}
			computes, err := computeInstances(gi)
			if err != nil {
				return err
			}
			if len(computes) > 0 {
				return taken(gpuUUID, at)
			}
			if ret := gi.Destroy(); ret != nvml.SUCCESS {
				return failure(ret, "remove a GPU instance of GPU %s that was half made", gpuUUID)
			}
		}
	}
	return nil
}

// computeInstances are those of a GPU instance.
func computeInstances(gi nvml.GpuInstance) ([]nvml.ComputeInstance, error) {
	var all []nvml.ComputeInstance
	seen := map[uint32]bool{}
	for id := range nvml.COMPUTE_INSTANCE_PROFILE_COUNT {
		info, ret := gi.GetComputeInstanceProfileInfo(id, nvml.COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED)
		if ret != nvml.SUCCESS {
			continue // not of this GPU
		}
		found, ret := gi.GetComputeInstances(&info)
		if ret != nvml.SUCCESS {
			return nil, failure(ret, "list compute instances")
		}
		for _, ci := range found {
			info, ret := ci.GetInfo()
			if ret != nvml.SUCCESS {
				return nil, failure(ret, "look at a compute instance")
			}
			if !seen[info.Id] {
				seen[info.Id] = true
				all = append(all, ci)
			}
		}
	}
	return all, nil
}

// fill makes the compute instance that has all of a GPU instance, and finds
// the device that both are.
func (s *session) fill(handle nvml.Device, gi nvml.GpuInstance, profiles []profile) (instance, error) {
	of, ret := gi.GetInfo()
	if ret != nvml.SUCCESS {
		return instance{}, failure(ret, "look at the GPU instance that was made")
	}
	at := slices.IndexFunc(profiles, func(p profile) bool { return p.info.Id == of.ProfileId })
	if at < 0 {
		return instance{}, failure(nvml.ERROR_UNKNOWN, "find the profile of the GPU instance that was made")
	}
	for id := range nvml.COMPUTE_INSTANCE_PROFILE_COUNT {
		info, ret := gi.GetComputeInstanceProfileInfo(id, nvml.COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED)
		if ret != nvml.SUCCESS || info.SliceCount != profiles[at].info.SliceCount {
			continue
		}
		ci, ret := gi.CreateComputeInstance(&info)
		if ret != nvml.SUCCESS {
			return instance{}, failure(ret, "make the compute instance")
		}
		made, err := s.find(handle, of.Id, ci, profiles)
		if err != nil {
			if ret := ci.Destroy(); ret != nvml.SUCCESS {
				err = errors.Join(err, failure(ret, "remove the compute instance that was begun"))
			}
		}
		return made, err
	}
	return instance{}, unsupported("no compute profile has all of MIG profile %s", profiles[at].Name)
}

// find is the MIG device of a compute instance. What nvmlComputeInstanceInfo
// names as device is the parent on some drivers.
func (s *session) find(handle nvml.Device, gi uint32, ci nvml.ComputeInstance, profiles []profile) (instance, error) {
	info, ret := ci.GetInfo()
	if ret != nvml.SUCCESS {
		return instance{}, failure(ret, "look at the compute instance that was made")
	}
	instances, ret := s.instances(handle, profiles)
	if ret != nvml.SUCCESS {
		return instance{}, failure(ret, "find the MIG device that was made")
	}
	for _, found := range instances {
		if found.GPUInstance == int(gi) && found.ComputeInstance == int(info.Id) {
			return found, nil
		}
	}
	return instance{}, failure(nvml.ERROR_UNKNOWN, "find the MIG device that was made")
}

// DestroyMIG implements gpu.Driver.
func (d *Driver) DestroyMIG(_ context.Context, migUUID string) error {
	s, err := d.driver()
	if err != nil {
		return err
	}
	defer s.close()
	device, err := s.handle(migUUID)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if !s.isInstance(device) {
		return problem.New(problem.FieldInvalid, "%s is no MIG instance", migUUID)
	}
	parent, ret := device.GetDeviceHandleFromMigDeviceHandle()
	if ret != nvml.SUCCESS {
		return failure(ret, "find the GPU of MIG instance %s", migUUID)
	}
	found, ret := s.instance(parent, device, nil)
	if ret != nvml.SUCCESS {
		return failure(ret, "look at MIG instance %s", migUUID)
	}
	if pids := s.pidsOn(parent, &found.MIGInstance); len(pids) > 0 {
		return inUse("MIG instance "+migUUID, pids)
	}
	return s.remove(found)
}

func inUse(what string, pids []int) error {
	return problem.New(problem.GPUInUse, "%s is used by the processes %s", what, strings.Trim(fmt.Sprint(pids), "[]")).
		WithHint("end them first")
}

// remove destroys a compute instance and, when it was the last, the GPU
// instance.
func (s *session) remove(found instance) error {
	ci, ret := found.gi.GetComputeInstanceById(found.ComputeInstance)
	if ret != nvml.SUCCESS && ret != nvml.ERROR_NOT_FOUND {
		return failure(ret, "find the compute instance of %s", found.UUID)
	}
	if ret == nvml.SUCCESS {
		if ret := ci.Destroy(); ret != nvml.SUCCESS && ret != nvml.ERROR_NOT_FOUND {
			return failure(ret, "remove the compute instance of %s", found.UUID)
		}
	}
	others, err := computeInstances(found.gi)
	if err != nil || len(others) > 0 {
		return err
	}
	if ret := found.gi.Destroy(); ret != nvml.SUCCESS && ret != nvml.ERROR_NOT_FOUND {
		return failure(ret, "remove the GPU instance of %s", found.UUID)
	}
	return nil
}

// SetMIGMode implements gpu.Driver. It never resets a GPU by itself.
func (d *Driver) SetMIGMode(_ context.Context, gpuUUID string, on bool) (resetNeeded bool, err error) {
	s, err := d.driver()
	if err != nil {
		return false, err
	}
	defer s.close()
	handle, err := s.whole(gpuUUID)
	if err != nil {
		return false, err
	}
	if err := s.migCapable(gpuUUID, handle); err != nil {
		return false, err
	}
	mode := nvml.DEVICE_MIG_DISABLE
	if on {
		mode = nvml.DEVICE_MIG_ENABLE
	}
	current, pending, ret := handle.GetMigMode()
	if ret != nvml.SUCCESS {
		return false, failure(ret, "read the MIG mode of GPU %s", gpuUUID)
	}
	if pending == mode {
		return current != mode, nil
	}
	if pids := s.pidsOn(handle, nil); len(pids) > 0 {
		return false, inUse("GPU "+gpuUUID, pids)
	}
	activation, ret := handle.SetMigMode(mode)
	if ret != nvml.SUCCESS {
		return false, failure(ret, "set the MIG mode of GPU %s", gpuUUID)
	}
	switch activation {
	case nvml.SUCCESS:
		return false, nil
	case nvml.ERROR_IN_USE, nvml.ERROR_RESET_REQUIRED: // it is pending
		return true, nil
	default:
		return false, failure(activation, "change the MIG mode of GPU %s", gpuUUID)
	}
}
