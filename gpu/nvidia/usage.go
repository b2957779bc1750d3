package nvidia

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/remotegpu/remotegpu/gpu"
)

// Usage implements gpu.Driver. A GPU that does not answer is left out; a host
// without a driver has none to measure.
func (d *Driver) Usage(ctx context.Context) ([]gpu.Usage, error) {
	s, err := d.open()
	if errors.Is(err, errNoLibrary) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer s.close()
	handles, silent, err := s.all()
	if err != nil {
		return nil, err
	}
	usages := make([]gpu.Usage, 0, len(handles))
	for _, index := range slices.Sorted(maps.Keys(handles)) {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		if usage, ret := s.usage(handles[index]); ret == nvml.SUCCESS {
			usages = append(usages, usage)
		} else {
			silent[index] = ret
		}
	}
	return usages, noneAnswers(len(usages), silent)
}

func (s *session) usage(handle nvml.Device) (gpu.Usage, nvml.Return) {
	usage := gpu.Untold("")
	var ret nvml.Return
	if usage.UUID, ret = handle.GetUUID(); ret != nvml.SUCCESS {
		return gpu.Usage{}, ret
	}
	if rates, ret := handle.GetUtilizationRates(); ret == nvml.SUCCESS { // not while MIG is on
		usage.UtilPercent, usage.CopyPercent = int(rates.Gpu), int(rates.Memory)
	}
	if percent, _, ret := handle.GetEncoderUtilization(); ret == nvml.SUCCESS {
		usage.EncoderPercent = int(percent)
	}
	if percent, _, ret := handle.GetDecoderUtilization(); ret == nvml.SUCCESS {
		usage.DecoderPercent = int(percent)
	}
	usage.Temperature = s.temperature(handle)
	if power, ret := handle.GetPowerUsage(); ret == nvml.SUCCESS {
		usage.PowerMilliwatts = int(power)
	}
	usage.ECCUncorrected = memoryErrors(handle, nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC)
	usage.ECCCorrected = memoryErrors(handle, nvml.MEMORY_ERROR_TYPE_CORRECTED, nvml.VOLATILE_ECC)
	usage.ECCUncorrectedEver = memoryErrors(handle, nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.AGGREGATE_ECC)
	usage.ECCCorrectedEver = memoryErrors(handle, nvml.MEMORY_ERROR_TYPE_CORRECTED, nvml.AGGREGATE_ECC)
	memory := s.memory(handle)
	usage.MemoryUsed, usage.MemoryFree, usage.MemoryReserved = memory.Used, memory.Free, memory.Reserved
	usage.Instances = s.instanceUsage(handle)
	usage.Processes, ret = s.processes(handle)
	return usage, ret
}

// temperature is in degrees, -1 when not known. The first function is deprecated
// since CUDA 13, the second not in drivers of before.
func (s *session) temperature(handle nvml.Device) int {
	if s.has("nvmlDeviceGetTemperatureV") {
		if degrees, ret := handle.GetTemperatureV().V1(); ret == nvml.SUCCESS {
			return int(degrees.Temperature)
		}
	}
	if s.has("nvmlDeviceGetTemperature") {
		if degrees, ret := handle.GetTemperature(nvml.TEMPERATURE_GPU); ret == nvml.SUCCESS {
			return int(degrees)
		}
	}
	return -1
}

// memoryErrors is a counter; -1 where there is none.
func memoryErrors(handle nvml.Device, kind nvml.MemoryErrorType, counter nvml.EccCounterType) int64 {
	count, ret := handle.GetTotalEccErrors(kind, counter)
	if ret != nvml.SUCCESS {
		return -1
	}
	return int64(min(count, math.MaxInt64))
}

// memory is with what the driver keeps for itself apart, where it tells.
func (s *session) memory(handle nvml.Device) nvml.Memory_v2 {
	if s.has("nvmlDeviceGetMemoryInfo_v2") {
		if memory, ret := handle.GetMemoryInfo_v2(); ret == nvml.SUCCESS {
			return memory
		}
	}
	memory, ret := handle.GetMemoryInfo()
	if ret != nvml.SUCCESS {
		return nvml.Memory_v2{}
	}
	return nvml.Memory_v2{Total: memory.Total, Free: memory.Free, Used: memory.Used}
}

// instanceUsage is the memory of each MIG instance of a GPU.
func (s *session) instanceUsage(handle nvml.Device) []gpu.InstanceUsage {
	if on, ret := s.migOn(handle); !on || ret != nvml.SUCCESS {
		return nil
	}
	count, ret := handle.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		return nil
	}
	var found []gpu.InstanceUsage
	for index := range count {
		instance, ret := handle.GetMigDeviceHandleByIndex(index)
		if ret != nvml.SUCCESS {
			continue
		}
		if uuid, ret := instance.GetUUID(); ret == nvml.SUCCESS {
			memory := s.memory(instance)
			found = append(found, gpu.InstanceUsage{UUID: uuid, MemoryUsed: memory.Used, MemoryFree: memory.Free})
		}
	}
	return found
}

// migOn says whether MIG is on. SUCCESS of a GPU that cannot be partitioned.
func (s *session) migOn(handle nvml.Device) (bool, nvml.Return) {
	if !s.has("nvmlDeviceGetMigMode") {
		return false, nvml.SUCCESS
	}
	current, _, ret := handle.GetMigMode()
	if ret == nvml.ERROR_NOT_SUPPORTED {
		return false, nvml.SUCCESS
	}
	return ret == nvml.SUCCESS && current == nvml.DEVICE_MIG_ENABLE, ret
}

// notAvailable is NVML_VALUE_NOT_AVAILABLE.
const notAvailable = math.MaxUint64

// utilWindow is the time that the utilization of processes is of.
const utilWindow = 2 * time.Second

// work is the share of time, in percent, in which a GPU worked for a process:
// kernels, encoders, decoders. -1: it is not told.
type work struct{ kernels, encoders, decoders int }

// utilization is what processes had a GPU do; nil where the driver does not
// tell, as of one that is partitioned.
func (s *session) utilization(handle nvml.Device) map[uint32]work {
	if !s.has("nvmlDeviceGetProcessUtilization") {
		return nil
	}
	samples, ret := handle.GetProcessUtilization(uint64(time.Now().Add(-utilWindow).UnixMicro()))
	told := ret == nvml.SUCCESS || ret == nvml.ERROR_NOT_FOUND // of no process
	if !told && (ret != nvml.ERROR_INSUFFICIENT_SIZE || samples == nil) {
		return nil
	}
	found, last := make(map[uint32]work, len(samples)), make(map[uint32]uint64, len(samples))
	for _, sample := range samples {
		if sample.TimeStamp < last[sample.Pid] {
			continue
		}
		found[sample.Pid] = work{percent(sample.SmUtil), percent(sample.EncUtil), percent(sample.DecUtil)}
		last[sample.Pid] = sample.TimeStamp
	}
	return found
}

// percent is -1 for what is no measurement, which some drivers give.
func percent(value uint32) int {
	if value > 100 {
		return -1
	}
	return int(value)
}

// processes are those that have contexts on a GPU. They are not told where it is
// not known on which instances: who is to have one would find it empty.
func (s *session) processes(handle nvml.Device) ([]gpu.Process, nvml.Return) {
	migs, ret := s.instanceUUIDs(handle)
	if ret != nvml.SUCCESS {
		return nil, ret
	}
	told := s.utilization(handle)
	type key struct {
		pid uint32
		mig string
	}
	found := map[key]gpu.Process{}
	add := func(infos []nvml.ProcessInfo, graphics bool) {
		for _, info := range infos {
			at := key{info.Pid, migs[[2]uint32{info.GpuInstanceId, info.ComputeInstanceId}]}
			process := found[at]
			process.PID, process.MIG = int(info.Pid), at.mig
			did := work{-1, -1, -1}
			if told != nil && at.mig == "" {
				did = told[info.Pid]
			}
			process.UtilPercent, process.EncoderPercent, process.DecoderPercent = did.kernels, did.encoders, did.decoders
			process.Graphics = process.Graphics || graphics
			if info.UsedGpuMemory != notAvailable {
				process.MemoryBytes = max(process.MemoryBytes, info.UsedGpuMemory) // both kinds count all of the process
			}
			found[at] = process
		}
	}
	compute, ret := handle.GetComputeRunningProcesses()
	if ret != nvml.SUCCESS && ret != nvml.ERROR_NOT_SUPPORTED {
		return nil, ret
	}
	add(compute, false)
	graphics, ret := handle.GetGraphicsRunningProcesses()
	if ret != nvml.SUCCESS && ret != nvml.ERROR_NOT_SUPPORTED {
		return nil, ret
	}
	add(graphics, true)
	if s.has("nvmlDeviceGetMPSComputeRunningProcesses") || s.has("nvmlDeviceGetMPSComputeRunningProcesses_v3") {
		if clients, ret := handle.GetMPSComputeRunningProcesses(); ret == nvml.SUCCESS {
			add(clients, false)
		}
	}
	return slices.SortedFunc(maps.Values(found), func(a, b gpu.Process) int {
		return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.MIG, b.MIG))
	}), nvml.SUCCESS
}

// instanceUUIDs are those of MIG instances by the numbers of GPU and compute
// instance.
func (s *session) instanceUUIDs(handle nvml.Device) (map[[2]uint32]string, nvml.Return) {
	if on, ret := s.migOn(handle); !on || ret != nvml.SUCCESS {
		return nil, ret
	}
	instances, ret := s.instances(handle, nil)
	if ret != nvml.SUCCESS {
		return nil, ret
	}
	uuids := make(map[[2]uint32]string, len(instances))
	for _, instance := range instances {
		uuids[[2]uint32{uint32(instance.GPUInstance), uint32(instance.ComputeInstance)}] = instance.UUID
	}
	return uuids, nvml.SUCCESS
}

// pidsOn are the processes on a GPU, or on one instance of it. What cannot be
// read is left to NVML to refuse.
func (s *session) pidsOn(handle nvml.Device, instance *gpu.MIGInstance) []int {
	processes, ret := s.processes(handle)
	if ret != nvml.SUCCESS {
		return nil
	}
	var pids []int
	for _, process := range processes {
		if instance == nil || process.MIG == instance.UUID {
			pids = append(pids, process.PID)
		}
	}
	return slices.Compact(pids)
}
