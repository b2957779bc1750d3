package nvidia

import (
	"fmt"
	"slices"
	"strings"

	nvdevice "github.com/NVIDIA/go-nvlib/pkg/nvlib/device"
	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/gpu"
)

// mig reads how a GPU is partitioned. A GPU instance without a compute
// instance, as one that was only half made, is no instance: CreateMIG clears it
// away when it wants the place. A GPU that does not tell its instances can be
// given to nobody.
func (s *session) mig(handle nvml.Device, device gpu.Device, architecture nvml.DeviceArchitecture, c *check) gpu.MIG {
	if !s.has("nvmlDeviceGetMigMode") {
		return gpu.MIG{}
	}
	current, pending, ret := handle.GetMigMode()
	if !c.ok(ret) {
		return gpu.MIG{} // not capable, or lost
	}
	mig := gpu.MIG{
		Capable: device.Virtualization != vgpuGuest, Enabled: current == nvml.DEVICE_MIG_ENABLE, Pending: current != pending,
		ResetNeeded: architecture < nvml.DEVICE_ARCH_HOPPER,
	}
	profiles, ret := s.profiles(handle, device.MemoryBytes)
	if !c.ok(ret) {
		c.unknown = fmt.Sprintf("its MIG profiles: %v", ret)
	}
	for _, profile := range profiles {
		mig.Profiles = append(mig.Profiles, profile.MIGProfile)
	}
	if !mig.Enabled {
		return mig
	}
	instances, ret := s.instances(handle, profiles)
	if !c.ok(ret) {
		c.unknown = fmt.Sprintf("its MIG instances: %v", ret)
	}
	for _, instance := range instances {
		mig.Instances = append(mig.Instances, instance.MIGInstance)
	}
	return mig
}

// profile is a MIG profile with what NVML wants to be told of it.
type profile struct {
	gpu.MIGProfile
	info nvml.GpuInstanceProfileInfo
}

// profiles are those that a GPU offers. Placements are unknown while MIG is
// off on some drivers.
func (s *session) profiles(handle nvml.Device, memory uint64) ([]profile, nvml.Return) {
	var profiles []profile
	for id := range nvml.GPU_INSTANCE_PROFILE_COUNT {
		info, ret := handle.GetGpuInstanceProfileInfo(id)
		switch ret {
		case nvml.SUCCESS:
		case nvml.ERROR_NOT_SUPPORTED, nvml.ERROR_INVALID_ARGUMENT: // not of this GPU, or of a newer driver
			continue
		default:
			return nil, ret
		}
		name, graphics := s.profileName(handle, id, info, memory)
		found := profile{info: info, MIGProfile: gpu.MIGProfile{
			Name: name, ID: id, MemoryBytes: info.MemorySizeMB << 20, Slices: int(info.SliceCount), Graphics: graphics,
		}}
		places, ret := handle.GetGpuInstancePossiblePlacements(&info)
		if ret != nvml.SUCCESS && ret != nvml.ERROR_NOT_SUPPORTED {
			return nil, ret
		}
		for _, place := range places {
			found.Placements = append(found.Placements, span(place))
		}
		profiles = append(profiles, found)
	}
	return profiles, nvml.SUCCESS
}

func span(place nvml.GpuInstancePlacement) gpu.Span {
	return gpu.Span{Start: int(place.Start), Size: int(place.Size)}
}

func overlap(a, b gpu.Span) bool { return a.Start < b.Start+b.Size && b.Start < a.Start+a.Size }

// graphicsSuffix is in names of profiles that can draw.
const graphicsSuffix = "+gfx"

// profileName is the driver's name of a profile. Drivers before R495 have none;
// then it is made as nvidia-smi does.
func (s *session) profileName(handle nvml.Device, id int, info nvml.GpuInstanceProfileInfo, memory uint64) (name string, graphics bool) {
	if s.has("nvmlDeviceGetGpuInstanceProfileInfoV") {
		if v3, ret := handle.GetGpuInstanceProfileInfoV(id).V3(); ret == nvml.SUCCESS {
			name = strings.TrimPrefix(text(v3.Name[:]), "MIG ")
			return name, v3.Capabilities&nvml.GPU_INSTANCE_PROFILE_CAPS_GFX != 0 || strings.Contains(name, graphicsSuffix)
		}
		if v2, ret := handle.GetGpuInstanceProfileInfoV(id).V2(); ret == nvml.SUCCESS {
			name = strings.TrimPrefix(text(v2.Name[:]), "MIG ")
			return name, strings.Contains(name, graphicsSuffix)
		}
	}
	name = computedName(s.devices, id, info, memory)
	return name, strings.Contains(name, graphicsSuffix)
}

// computeProfiles are COMPUTE_INSTANCE_PROFILE_* by slices.
var computeProfiles = map[uint32]int{
	1: nvml.COMPUTE_INSTANCE_PROFILE_1_SLICE, 2: nvml.COMPUTE_INSTANCE_PROFILE_2_SLICE, 3: nvml.COMPUTE_INSTANCE_PROFILE_3_SLICE,
	4: nvml.COMPUTE_INSTANCE_PROFILE_4_SLICE, 6: nvml.COMPUTE_INSTANCE_PROFILE_6_SLICE, 7: nvml.COMPUTE_INSTANCE_PROFILE_7_SLICE,
	8: nvml.COMPUTE_INSTANCE_PROFILE_8_SLICE,
}

// computedName is go-nvlib's name. It does not know the profile of three slices
// with graphics.
func computedName(devices nvdevice.Interface, id int, info nvml.GpuInstanceProfileInfo, memory uint64) string {
	suffix := ""
	if id == nvml.GPU_INSTANCE_PROFILE_3_SLICE_GFX {
		id, suffix = nvml.GPU_INSTANCE_PROFILE_3_SLICE, graphicsSuffix
	}
	compute, known := computeProfiles[info.SliceCount]
	if known && memory > 0 {
		if made, err := devices.NewMigProfile(id, compute, nvml.COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED, info.MemorySizeMB, memory); err == nil {
			return made.String() + suffix
		}
	}
	return fmt.Sprintf("%dg.%dgb%s", info.SliceCount, (info.MemorySizeMB+512)>>10, suffix)
}

func text(chars []int8) string {
	bytes := make([]byte, len(chars))
	for i, char := range chars {
		bytes[i] = byte(char)
	}
	return unix.ByteSliceToString(bytes)
}

// instance is a MIG instance with the handles to change it by.
type instance struct {
	gpu.MIGInstance
	gi nvml.GpuInstance
}

// instances are the MIG instances of a GPU whose MIG mode is on.
func (s *session) instances(handle nvml.Device, profiles []profile) ([]instance, nvml.Return) {
	count, ret := handle.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		return nil, ret
	}
	var instances []instance
	for index := range count {
		device, ret := handle.GetMigDeviceHandleByIndex(index)
		switch ret {
		case nvml.SUCCESS:
		case nvml.ERROR_NOT_FOUND, nvml.ERROR_INVALID_ARGUMENT:
			continue
		default:
			return nil, ret
		}
		found, ret := s.instance(handle, device, profiles)
		if ret == nvml.ERROR_NOT_FOUND {
			continue // somebody removed it meanwhile
		}
		if ret != nvml.SUCCESS {
			return nil, ret
		}
		instances = append(instances, found)
	}
	return instances, nvml.SUCCESS
}

func (s *session) instance(parent, device nvml.Device, profiles []profile) (instance, nvml.Return) {
	var found instance
	var ret nvml.Return
	if found.UUID, ret = device.GetUUID(); ret != nvml.SUCCESS {
		return instance{}, ret
	}
	if found.GPUInstance, ret = device.GetGpuInstanceId(); ret != nvml.SUCCESS {
		return instance{}, ret
	}
	if found.ComputeInstance, ret = device.GetComputeInstanceId(); ret != nvml.SUCCESS {
		return instance{}, ret
	}
	if found.gi, ret = parent.GetGpuInstanceById(found.GPUInstance); ret != nvml.SUCCESS {
		return instance{}, ret
	}
	info, ret := found.gi.GetInfo()
	if ret != nvml.SUCCESS {
		return instance{}, ret
	}
	found.Placement = span(info.Placement)
	at := slices.IndexFunc(profiles, func(p profile) bool { return p.info.Id == info.ProfileId })
	if at >= 0 {
		found.Profile, found.MemoryBytes = profiles[at].Name, profiles[at].MemoryBytes
	}
	attributes, ret := device.GetAttributes()
	if ret == nvml.SUCCESS {
		found.MemoryBytes = attributes.MemorySizeMB << 20
		if attributes.ComputeInstanceSliceCount < attributes.GpuInstanceSliceCount { // somebody made several in one
			found.Profile = fmt.Sprintf("%dc.%s", attributes.ComputeInstanceSliceCount, found.Profile)
		}
	}
	return found, nvml.SUCCESS
}

// isInstance says whether a handle is of a MIG instance.
func (s *session) isInstance(handle nvml.Device) bool {
	if !s.has("nvmlDeviceIsMigDeviceHandle") {
		return false
	}
	is, ret := handle.IsMigDeviceHandle()
	return ret == nvml.SUCCESS && is
}
