package runtime

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// partitions is what administrators made of partitions, the host has lost, and
// could not be made again, and why: by UUID of the GPU, or by placeOf.
type partitions struct {
	mu       sync.Mutex
	problems map[string]string
}

// placeOf names an instance that is planned.
func placeOf(p *gpu.Planned) string { return fmt.Sprintf("%s:%d", p.GPU, p.Placement.Start) }

// problem is why something is not there as it should be; "" when it is, or when
// nothing has tried yet.
func (p *partitions) problem(of string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.problems[of]
}

// set replaces what is known and returns what is new of it.
func (p *partitions) set(problems map[string]string) (news map[string]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	news = maps.Clone(problems)
	maps.DeleteFunc(news, func(of, why string) bool { return p.problems[of] == why })
	p.problems = problems
	return news
}

// wantedMIG are the GPUs whose MIG mode is to be on: by the mode, or by an
// instance that is to be there.
func wantedMIG(books *gpu.Books) []string {
	wanted := slices.Clone(books.MIG)
	for i := range books.Planned {
		if p := &books.Planned[i]; !p.Remove && !slices.Contains(wanted, p.GPU) {
			wanted = append(wanted, p.GPU)
		}
	}
	return wanted
}

// whole says that nothing of what administrators made is missing.
func whole(books *gpu.Books) bool {
	for _, uuid := range wantedMIG(books) {
		if d, there := books.Device(uuid); !there || !d.MIG.Enabled {
			return false
		}
	}
	return !slices.ContainsFunc(books.Planned, func(p gpu.Planned) bool {
		d, _ := books.Device(p.GPU)
		_, there := p.Find(&d)
		return !p.Remove && !there
	})
}

// remakePartitions makes again what administrators made of partitions and the
// host has lost, as it does of instances with every reboot: the mode on GPUs that
// nobody uses alone. A condition tells what could not be made and why, and each
// pass tries again. It takes its time, so it is for who may wait.
func (m *Manager) remakePartitions(ctx context.Context) error {
	if m.cfg.GPUs == nil {
		return nil
	}
	// Where nothing was made nothing is missing, whatever GPUs there are.
	books, err := m.cfg.Store.GPUBooks(ctx)
	if err != nil {
		return err
	}
	if len(books.Planned) > 0 || len(books.MIG) > 0 {
		if books, _, err = m.books(ctx, freshInventory); err != nil {
			return err
		}
	}
	if whole(&books) {
		m.reportPartitions(ctx, nil)
		return nil
	}
	var done func()
	// As in decideLeases: it may be a start that waits.
	if err := operation.Idle(ctx, func() (err error) { done, err = m.gpuGate.Lock(ctx, struct{}{}); return err }); err != nil {
		return fmt.Errorf("wait for who is given GPUs: %w", err)
	}
	defer done()
	defer m.gpus.outdate()
	if books, _, err = m.books(ctx, 0); err != nil {
		return err
	}
	problems := make(map[string]string)
	for _, uuid := range wantedMIG(&books) {
		if why := m.remakeMode(ctx, &books, uuid); why != "" {
			problems[uuid] = why
		}
	}
	m.gpus.outdate()
	if books, _, err = m.books(ctx, 0); err != nil {
		return err
	}
	books.Devices = slices.Clone(books.Devices) // others read those of the inventory
	for i := range books.Planned {
		p := &books.Planned[i]
		if why := m.remakeInstance(ctx, &books, p); why != "" {
			problems[placeOf(p)] = why
		}
	}
	if ctx.Err() == nil {
		m.reportPartitions(ctx, problems)
	}
	return nil
}

// reportPartitions keeps what could not be made again.
func (m *Manager) reportPartitions(ctx context.Context, problems map[string]string) {
	for of, why := range m.partition.set(problems) {
		m.cfg.Log.WarnContext(ctx, "what was made of a GPU's partitions could not be made again; each pass tries", "gpu", of, "reason", why)
	}
	var missing error
	if len(problems) > 0 {
		var texts []string
		for _, of := range slices.Sorted(maps.Keys(problems)) {
			texts = append(texts, of+": "+problems[of])
		}
		missing = problem.New(problem.GPUPartitionMissing, "partitions of GPUs that were made by an administrator are not there: %s", strings.Join(texts, "; ")).
			WithHint("see remotegpu gpu get GPU; what is not wanted any more: remotegpu gpu mig delete GPU:PLACE, or gpu mig mode GPU off")
	}
	m.setCondition(problem.GPUPartitionMissing, missing)
}

// untouchable says why a GPU is left as it is; "" when it is not.
func untouchable(books *gpu.Books, d *gpu.Device, there bool) string {
	mark := books.Mark(d.UUID)
	switch {
	case !there:
		return "the GPU is not there"
	case d.Health.Unhealthy:
		return "the GPU is unhealthy: " + d.Health.Reason
	case mark.Health.Unhealthy:
		return "the GPU is unhealthy: " + mark.Health.Reason
	case mark.Drained:
		return "the GPU is drained"
	}
	return ""
}

// remakeMode turns MIG on again on a GPU that nobody uses. It says why not.
func (m *Manager) remakeMode(ctx context.Context, books *gpu.Books, uuid string) string {
	d, there := books.Device(uuid)
	if there && d.MIG.Enabled {
		return ""
	}
	if why := untouchable(books, &d, there); why != "" {
		return "MIG is off: " + why
	}
	switch {
	case !d.MIG.Capable:
		return "MIG is off: the GPU cannot be partitioned any more"
	case d.MIG.Pending:
		return "MIG is off until the GPU is reset: nvidia-smi -r -i " + uuid
	}
	for _, l := range books.Leases(uuid) {
		if l.Mode != gpu.MIGMode {
			return "MIG is off: the GPU is used by " + l.EnvName
		}
	}
	usage, err := m.cfg.GPUs.Usage(ctx)
	if err != nil {
		return "MIG is off: it cannot be told whether the GPU is idle: " + err.Error()
	}
	at := slices.IndexFunc(usage, func(u gpu.Usage) bool { return u.UUID == uuid })
	switch {
	case at < 0:
		return "MIG is off: it cannot be told whether the GPU is idle"
	case len(usage[at].Processes) > 0:
		return fmt.Sprintf("MIG is off: %d processes use the GPU, the first is %d", len(usage[at].Processes), usage[at].Processes[0].PID)
	}
	reset, err := m.cfg.GPUs.SetMIGMode(ctx, uuid, true)
	switch {
	case err != nil:
		return "MIG is off: " + err.Error()
	case reset:
		return "MIG is off until the GPU is reset: nvidia-smi -r -i " + uuid
	}
	m.cfg.Log.InfoContext(ctx, "MIG is on again on a GPU", "gpu", uuid)
	return ""
}

// remakeInstance makes an instance again that is to be there. It says why not.
func (m *Manager) remakeInstance(ctx context.Context, books *gpu.Books, p *gpu.Planned) string {
	d, there := books.Device(p.GPU)
	if _, exists := p.Find(&d); p.Remove || exists {
		return ""
	}
	if why := untouchable(books, &d, there); why != "" {
		return why
	}
	if !d.MIG.Enabled {
		return "MIG is off"
	}
	for i := range d.MIG.Instances {
		if other := &d.MIG.Instances[i]; other.Placement.Overlaps(p.Placement) {
			return fmt.Sprintf("instance %s (%s at %d) is in its place", other.UUID, other.Profile, other.Placement.Start)
		}
	}
	made, err := m.cfg.GPUs.CreateMIG(ctx, p.GPU, p.Profile, p.Placement)
	if err != nil {
		return err.Error()
	}
	d.MIG.Instances = append(slices.Clone(d.MIG.Instances), made)
	for i := range books.Devices {
		if books.Devices[i].UUID == d.UUID {
			books.Devices[i] = d
		}
	}
	m.cfg.Log.InfoContext(ctx, "a MIG instance is there again", "gpu", p.GPU, "mig", made.UUID, "profile", p.Profile, "start", p.Placement.Start)
	return ""
}
