package runtime

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// Limits of measuring.
const (
	DefaultStatsInterval = time.Second
	MinStatsInterval     = 100 * time.Millisecond

	// cpuWindow is the time that the CPU use of a single answer is taken over.
	cpuWindow = 100 * time.Millisecond
	// diskTime bounds what the disks of one answer may take: a writable layer
	// can hold millions of files.
	diskTime = 20 * time.Second
)

// Meters measures what environments use; internal/node puts it together from
// the kernel's counters, the network and the engine.
type Meters interface {
	// Usage reads the counters of running environments. Those that do not run
	// are left out.
	Usage(ctx context.Context, envIDs []string) (map[string]Usage, error)
	// DiskUsage is the size of an environment's writable layer in bytes. It
	// may walk files until ctx ends. NotFound.
	DiskUsage(ctx context.Context, envID string) (int64, error)
}

// Usage are the counters of an environment since it was started; network
// counters since its network was made.
type Usage struct {
	At                              time.Time // when it was read
	CPU                             time.Duration
	MemoryBytes, WorkingSetBytes    int64
	Pids                            int64
	NetworkReceived, NetworkSent    int64 // bytes
	BlockReadBytes, BlockWriteBytes int64
}

// Stats is what an environment uses.
type Stats struct {
	EnvID, Name, Project string
	Usage
	CPUMillis        int64 // CPUs used lately, in thousandths
	MemoryLimitBytes int64 // 0: none
	DiskBytes        int64 // of its writable layer; -1 when not measured
	DiskLimitBytes   int64 // that is enforced; 0: none
	GPUs             []GPUStats
}

// StatsRequest names environments.
type StatsRequest struct {
	Project      string   // to look names up in, "": DefaultProject; and to list, "": all
	Environments []string // ids or names; none: all that run
	Disk         bool     // measure the writable layers too; a watch does at most every diskInterval
	// Interval is the time between two messages of WatchStats;
	// DefaultStatsInterval when 0.
	Interval time.Duration
}

// Stats measures environments, CPU over a moment. One that does not run has
// disk use only; one whose disk could not be walked in time has none.
func (m *Manager) Stats(ctx context.Context, req StatsRequest) ([]Stats, error) {
	envs, err := m.measured(ctx, &req)
	if err != nil {
		return nil, err
	}
	stats, err := m.sampleTwice(ctx, envs, cpuWindow)
	if err != nil {
		return nil, err
	}
	if req.Disk {
		if err := m.measureDisks(ctx, stats); err != nil {
			return nil, err
		}
	}
	return stats, nil
}

// WatchStats calls send with what environments use, at once and then at each
// interval, until ctx ends or send fails. A receiver that is slower than the
// interval gets fewer messages. With environments named, it ends with
// ENV_NOT_FOUND when the last of them has gone.
func (m *Manager) WatchStats(ctx context.Context, req StatsRequest, send func([]Stats) error) error {
	if req.Interval == 0 {
		req.Interval = DefaultStatsInterval
	}
	req.Interval = max(req.Interval, MinStatsInterval)
	envs, err := m.measured(ctx, &req)
	if err != nil {
		return err
	}
	// From here on they are known by id: a name may change hands.
	for i := range req.Environments {
		req.Environments[i] = envs[i].ID
	}
	stats, err := m.sampleTwice(ctx, envs, cpuWindow)
	if err != nil {
		return err
	}
	walks := walker{manager: m, busy: make(chan struct{}, 1)}
	if req.Disk {
		defer walks.wait()
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
	}
	ticker := time.NewTicker(req.Interval)
	defer ticker.Stop()
	for {
		if req.Disk {
			walks.show(ctx, stats)
		}
		if err := send(stats); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
		if envs, err = m.remaining(ctx, &req); err != nil {
			return err
		}
		if stats, err = m.sample(ctx, envs, stats); err != nil {
			return err
		}
	}
}

// measured are the environments that a request is about. It replaces
// req.Environments by a copy that is the caller's own.
func (m *Manager) measured(ctx context.Context, req *StatsRequest) ([]*Environment, error) {
	req.Environments = append([]string(nil), req.Environments...)
	if len(req.Environments) == 0 {
		envs, _, err := m.cfg.Store.Environments(ctx, Filter{Project: req.Project, States: []State{Running}})
		return envs, err
	}
	if req.Project == "" {
		req.Project = DefaultProject
	}
	envs := make([]*Environment, 0, len(req.Environments))
	for _, name := range req.Environments {
		env, err := m.Get(ctx, req.Project, name)
		if err != nil {
			return nil, err
		}
		envs = append(envs, env)
	}
	return envs, nil
}

// remaining is measured for a later message of a watch: environments that
// have gone since are left out, until none is left.
func (m *Manager) remaining(ctx context.Context, req *StatsRequest) ([]*Environment, error) {
	if len(req.Environments) == 0 {
		return m.measured(ctx, req)
	}
	envs := make([]*Environment, 0, len(req.Environments))
	var gone error
	for _, id := range req.Environments {
		env, err := m.Get(ctx, req.Project, id)
		switch {
		case err == nil:
			envs = append(envs, env)
		case problem.Of(err).Reason == problem.EnvNotFound:
			gone = err
		default:
			return nil, err
		}
	}
	if len(envs) == 0 {
		return nil, gone
	}
	return envs, nil
}

// sampleTwice samples with a while in between, so that the CPU's use is known.
func (m *Manager) sampleTwice(ctx context.Context, envs []*Environment, window time.Duration) ([]Stats, error) {
	before, err := m.sample(ctx, envs, nil)
	if err != nil {
		return nil, err
	}
	running := false
	for i := range before {
		running = running || !before[i].At.IsZero()
	}
	if !running {
		return before, nil
	}
	timer := time.NewTimer(window)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-timer.C:
	}
	return m.sample(ctx, envs, before)
}

// sample reads the counters once. before are the stats of the sample before.
// One pass at a time bounds what any number of callers cost.
func (m *Manager) sample(ctx context.Context, envs []*Environment, before []Stats) ([]Stats, error) {
	unlock, err := m.measuring.Lock(ctx, "usage")
	if err != nil {
		return nil, err
	}
	defer unlock()
	ids := make([]string, 0, len(envs))
	for _, env := range envs {
		if env.Alive() {
			ids = append(ids, env.ID)
		}
	}
	usages, err := m.cfg.Meters.Usage(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("measure environments: %w", err)
	}
	earlier := make(map[string]Usage, len(before))
	for i := range before {
		earlier[before[i].EnvID] = before[i].Usage
	}
	stats := make([]Stats, 0, len(envs))
	for _, env := range envs {
		one := Stats{
			EnvID: env.ID, Name: env.Name, Project: env.Project, Usage: usages[env.ID],
			MemoryLimitBytes: env.Spec.Resources.MemoryBytes, DiskBytes: -1, DiskLimitBytes: env.Disk.Bytes,
		}
		one.CPUMillis = cpuMillis(earlier[env.ID], one.Usage)
		stats = append(stats, one)
	}
	m.measureGPUs(ctx, envs, stats)
	return stats, nil
}

// cpuMillis is the CPU use between two samples, 0 without both. A counter that
// went back began anew with the environment.
func cpuMillis(before, now Usage) int64 {
	elapsed := now.At.Sub(before.At)
	if before.At.IsZero() || now.At.IsZero() || elapsed <= 0 {
		return 0
	}
	used := now.CPU - before.CPU
	if used < 0 {
		used = now.CPU
	}
	return int64(float64(used) / float64(elapsed) * 1000)
}

// measureDisks sets the disk use of each, as far as time allows. One caller
// walks at a time: disks are slow when many do.
func (m *Manager) measureDisks(ctx context.Context, stats []Stats) error {
	walking, cancel := context.WithTimeout(ctx, diskTime)
	defer cancel()
	unlock, err := m.measuring.Lock(walking, "disk")
	if err != nil {
		return context.Cause(ctx) // nil when others took all the time
	}
	defer unlock()
	for i := range stats {
		bytes, err := m.cfg.Meters.DiskUsage(walking, stats[i].EnvID)
		switch {
		case err == nil:
			stats[i].DiskBytes = bytes
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case walking.Err() != nil, errors.Is(err, context.DeadlineExceeded):
			return nil
		case errdefs.IsNotFound(err): // its create failed, or it went meanwhile
		default:
			return fmt.Errorf("measure disk of environment %s: %w", stats[i].EnvID, err)
		}
	}
	return nil
}
