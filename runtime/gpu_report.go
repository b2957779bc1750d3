package runtime

import (
	"context"
	"fmt"
	"slices"

	"github.com/remotegpu/remotegpu/gpu"
)

// GPUReport is all that is known of GPUs at a moment.
type GPUReport struct {
	gpu.Inventory
	// Err is why the software of the host does not answer: GPUs are as it last told
	// of them, and not measured. nil: it does.
	Err     error
	GPUs    []GPU
	Errors  map[string]GPUErrors // by UUID
	Holders []GPUHolder
}

// GPUHolder is an environment that has a GPU.
type GPUHolder struct {
	Lease   gpu.Lease
	Project string
	// Lost says that its process has lost its GPUs.
	Lost  bool
	Stats *GPUStats // nil: it has no process, or what that uses is not known
}

// ReportGPUs tells of GPUs, as often as somebody asks: a host without GPUs of
// NVIDIA is not looked at anew for that, nor is anything measured there, since
// either starts a process. It may take as long as a driver that hangs.
func (m *Manager) ReportGPUs(ctx context.Context) GPUReport {
	envs, _, err := m.cfg.Store.Environments(ctx, Filter{})
	if err != nil {
		return GPUReport{Err: fmt.Errorf("list environments: %w", err)}
	}
	var reading *gpuReading
	all, found, stale, err := m.listGPUs(ctx, m.lookAgain(envs), func(devices []gpu.Device) []gpu.Usage {
		if !slices.ContainsFunc(devices, ofNVIDIA) {
			return nil
		}
		if reading = m.gpuUsage.read(ctx, m.readGPUs); reading == nil {
			return nil
		}
		return reading.usage
	})
	if err != nil {
		return GPUReport{Err: err}
	}
	report := GPUReport{Inventory: found, Err: stale, GPUs: all, Errors: make(map[string]GPUErrors)}
	if stale == nil && reading == nil && slices.ContainsFunc(found.Devices, ofNVIDIA) {
		report.Err = asGPUUnavailable(errNotMeasured)
	}
	for i := range all {
		report.Errors[all[i].UUID] = m.GPUErrors(all[i].UUID)
	}
	for _, env := range envs {
		var stats []GPUStats
		m.fillInstances(env)
		if env.Alive() && len(env.GPUs) > 0 {
			stats = m.statsOfGPUs(ctx, env, reading)
		}
		for _, l := range env.GPUs {
			holder := GPUHolder{Lease: l, Project: env.Project, Lost: env.Alive() && env.GPURun != nil && env.GPURun.Lost != ""}
			if at := slices.IndexFunc(stats, func(s GPUStats) bool { return s.GPU == l.GPU }); at >= 0 {
				holder.Stats = &stats[at]
			}
			report.Holders = append(report.Holders, holder)
		}
	}
	return report
}
