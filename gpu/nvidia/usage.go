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
	usage := gpu.Usage{UtilPercent: -1, EncoderPercent: -1, DecoderPercent: -1, Temperature: -1, PowerMilliwatts: -1, ECCUncorrected: -1}
	var ret nvml.Return
	if usage.UUID, ret = handle.GetUUID(); ret != nvml.SUCCESS {
		return gpu.Usage{}, ret
	}
	if rates, ret := handle.GetUtilizationRates(); ret == nvml.SUCCESS { // not while MIG is on
		usage.UtilPercent = int(rates.Gpu)
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
	if count, ret := handle.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC); ret == nvml.SUCCESS {
		usage.ECCUncorrected = int64(min(count, math.MaxInt64))
	}
	usage.MemoryUsed = s.memoryUsed(handle)
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

// memoryUsed is without what the driver keeps for itself, where it tells.
func (s *session) memoryUsed(handle nvml.Device) uint64 {
	if s.has("nvmlDeviceGetMemoryInfo_v2") {
		if memory, ret := handle.GetMemoryInfo_v2(); ret == nvml.SUCCESS {
			return memory.Used
		}
	}
	if memory, ret := handle.GetMemoryInfo(); ret == nvml.SUCCESS {
		return memory.Used
	}
	return 0
}

// notAvailable is NVML_VALUE_NOT_AVAILABLE.
const notAvailable = math.MaxUint64

// utilWindow is the time that the utilization of processes is of.
const utilWindow = 2 * time.Second

// utilization is the share of time in which kernels of processes ran, in
// percent; nil where the driver does not tell, as on a GPU that is partitioned.
func (s *session) utilization(handle nvml.Device) map[uint32]int {
	if !s.has("nvmlDeviceGetProcessUtilization") {
		return nil
	}
	samples, ret := handle.GetProcessUtilization(uint64(time.Now().Add(-utilWindow).UnixMicro()))
	told := ret == nvml.SUCCESS || ret == nvml.ERROR_NOT_FOUND // of no process
	if !told && (ret != nvml.ERROR_INSUFFICIENT_SIZE || samples == nil) {
		return nil
	}
	percent, last := make(map[uint32]int, len(samples)), make(map[uint32]uint64, len(samples))
	for _, sample := range samples {
		if sample.TimeStamp < last[sample.Pid] {
			continue
		}
		percent[sample.Pid], last[sample.Pid] = int(sample.SmUtil), sample.TimeStamp
		if sample.SmUtil > 100 { // some drivers give what is no measurement
			percent[sample.Pid] = -1
		}
	}
	return percent
}

// processes are those that have contexts on a GPU.
func (s *session) processes(handle nvml.Device) ([]gpu.Process, nvml.Return) {
	migs, percent := s.instanceUUIDs(handle), s.utilization(handle)
	type key struct {
		pid uint32
		mig string
	}
	found := map[key]gpu.Process{}
	add := func(infos []nvml.ProcessInfo, graphics bool) {
		for _, info := range infos {
			at := key{info.Pid, migs[[2]uint32{info.GpuInstanceId, info.ComputeInstanceId}]}
			process := found[at]
			process.PID, process.MIG, process.UtilPercent = int(info.Pid), at.mig, -1
			if percent != nil && at.mig == "" {
				process.UtilPercent = percent[info.Pid]
			}
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
func (s *session) instanceUUIDs(handle nvml.Device) map[[2]uint32]string {
	if !s.has("nvmlDeviceGetMigMode") {
		return nil
	}
	if current, _, ret := handle.GetMigMode(); ret != nvml.SUCCESS || current != nvml.DEVICE_MIG_ENABLE {
		return nil
	}
	instances, ret := s.instances(handle, nil)
	if ret != nvml.SUCCESS {
		return nil
	}
	uuids := make(map[[2]uint32]string, len(instances))
	for _, instance := range instances {
		uuids[[2]uint32{uint32(instance.GPUInstance), uint32(instance.ComputeInstance)}] = instance.UUID
	}
	return uuids
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
