package rpc

import (
	"context"
	"time"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/gen/remotegpu/v1/remotegpuv1connect"
	"github.com/remotegpu/remotegpu/runtime"
)

// GetStats implements the RPC.
func (s *environmentService) GetStats(ctx context.Context, req *remotegpuv1.GetStatsRequest) (*remotegpuv1.GetStatsResponse, error) {
	stats, err := s.cfg.Manager.Stats(ctx, runtime.StatsRequest{
		Project: req.GetProject(), Environments: req.GetEnvironments(), Disk: req.GetDisk(),
	})
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.GetStatsResponse{Stats: toStats(stats)}, nil
}

// WatchStats implements the RPC.
func (s *environmentService) WatchStats(ctx context.Context, req *remotegpuv1.WatchStatsRequest, stream remotegpuv1connect.EnvironmentServiceWatchStatsServerStream) error {
	return s.cfg.Manager.WatchStats(ctx, runtime.StatsRequest{
		Project: req.GetProject(), Environments: req.GetEnvironments(), Interval: req.GetInterval().AsDuration(), Disk: req.GetDisk(),
	}, func(stats []runtime.Stats) error {
		return stream.Send(&remotegpuv1.WatchStatsResponse{Stats: toStats(stats)})
	})
}

func toStats(all []runtime.Stats) []*remotegpuv1.Stats {
	messages := make([]*remotegpuv1.Stats, 0, len(all))
	for i := range all {
		s := &all[i]
		message := &remotegpuv1.Stats{
			Environment: s.EnvID, Name: s.Name, Project: s.Project, Time: timestamp(s.At), CpuNanos: s.CPU.Nanoseconds(), CpuMillis: s.CPUMillis,
			MemoryWorkingSetBytes: s.WorkingSetBytes, MemoryUsageBytes: s.MemoryBytes, MemoryLimitBytes: s.MemoryLimitBytes,
			Pids: s.Pids, NetworkReceiveBytes: s.NetworkReceived, NetworkTransmitBytes: s.NetworkSent,
			BlockReadBytes: s.BlockReadBytes, BlockWriteBytes: s.BlockWriteBytes,
		}
		if s.At.IsZero() { // it does not run, which is as of now
			message.Time = timestamp(time.Now())
		}
		message.DiskLimitBytes = s.DiskLimitBytes
		if s.DiskBytes >= 0 {
			message.DiskBytes = &s.DiskBytes
		}
		for _, g := range s.GPUs {
			message.Gpus = append(message.Gpus, &remotegpuv1.GPUStats{
				Gpu: g.GPU, MigInstance: g.MIG, MemoryBytes: g.MemoryBytes, MemoryLimitBytes: g.MemoryLimitBytes,
				UtilPercent: told[int, int32](g.UtilPercent), Processes: int32(g.Processes),
				MemoryUnknown: g.MemoryUnknown, EncoderPercent: told[int, int32](g.EncoderPercent), DecoderPercent: told[int, int32](g.DecoderPercent),
			})
		}
		messages = append(messages, message)
	}
	return messages
}
