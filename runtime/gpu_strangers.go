package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/gpu"
)

// labelGPU, and a number, are the labels of a container that have the leases that
// it was started with: what it holds of GPUs is known without the database.
const labelGPU = "remotegpu.dev/gpu."

// labelLeases adds the labels of leases.
func labelLeases(labels map[string]string, leases []gpu.Lease) {
	for i := range leases {
		l := leases[i]
		l.EnvName, l.MIG = "", ""  // they change
		text, _ := json.Marshal(l) //nolint:errchkjson // a plain struct of ours
		labels[fmt.Sprint(labelGPU, i)] = string(text)
	}
}

// keepLeases has labels tell of the leases that a container was started with, as
// those before do: a database that was restored knows others.
func keepLeases(labels, before map[string]string) {
	maps.DeleteFunc(labels, func(name, _ string) bool { return strings.HasPrefix(name, labelGPU) })
	for name, text := range before {
		if strings.HasPrefix(name, labelGPU) {
			labels[name] = text
		}
	}
}

// labelledLeases are the leases that the labels of a container tell of. What
// cannot be read was not written by us.
func labelledLeases(labels map[string]string) []gpu.Lease {
	var leases []gpu.Lease
	for name, text := range labels {
		var l gpu.Lease
		if strings.HasPrefix(name, labelGPU) && json.Unmarshal([]byte(text), &l) == nil && l.ID != "" && l.GPU != "" && l.Mode != "" {
			leases = append(leases, l)
		}
	}
	slices.SortFunc(leases, func(a, b gpu.Lease) int { return strings.Compare(a.GPU, b.GPU) })
	return leases
}

// strangeLeases are what containers hold of GPUs that the database does not know
// of, as after it was lost, or was restored as it was before: until such a
// container has gone nobody is given what it holds. They have the container's id
// for the environment's.
func (m *Manager) strangeLeases(ctx context.Context) ([]gpu.Lease, error) {
	if m.cfg.GPUs == nil {
		return nil, nil
	}
	known := m.strangers.Load()
	if known == nil { // no pass has come this far yet
		statuses, err := m.cfg.Engine.List(ctx)
		if err != nil {
			return nil, fmt.Errorf("look for containers that hold GPUs: %w", err)
		}
		return m.lookForStrangers(ctx, statuses)
	}
	if len(*known) == 0 {
		return nil, nil
	}
	var statuses []ContainerStatus
	for _, id := range *known {
		status, err := m.cfg.Engine.Status(ctx, id)
		switch {
		case errdefs.IsNotFound(err):
		case err != nil:
			return nil, fmt.Errorf("look whether container %s holds GPUs: %w", id, err)
		default:
			statuses = append(statuses, status)
		}
	}
	return m.strangeAmong(ctx, statuses)
}

// lookForStrangers does as strangeLeases, by a list of all containers, and keeps
// which they are of.
func (m *Manager) lookForStrangers(ctx context.Context, statuses []ContainerStatus) ([]gpu.Lease, error) {
	leases, err := m.strangeAmong(ctx, statuses)
	if err != nil {
		return nil, err
	}
	ids := make([]string, 0, len(leases))
	for i := range leases {
		ids = append(ids, leases[i].EnvID)
	}
	ids = slices.Compact(ids)
	m.strangers.Store(&ids)
	return leases, nil
}

// strangeAmong finds the leases of some containers that the database does not
// have. One that an environment is stopped with was given back.
func (m *Manager) strangeAmong(ctx context.Context, statuses []ContainerStatus) ([]gpu.Lease, error) {
	var strange []gpu.Lease
	for i := range statuses {
		status := &statuses[i]
		leases := labelledLeases(status.Labels)
		if len(leases) == 0 {
			continue
		}
		fate := FateUnknown
		if isID(status.ID) {
			var err error
			if fate, err = m.cfg.Store.Fate(ctx, status.ID); err != nil {
				return nil, err
			}
		}
		var held []gpu.Lease
		if fate == FateHeld {
			env, err := m.cfg.Store.Environment(ctx, status.ID)
			if err != nil && !errdefs.IsNotFound(err) {
				return nil, err
			}
			if err != nil || !status.Running {
				continue
			}
			if env.Alive() {
				held = env.GPUs
			}
		}
		for _, l := range leases {
			if slices.ContainsFunc(held, func(own gpu.Lease) bool { return sameShare(&own, &l) }) {
				continue
			}
			l.EnvID, l.EnvName = status.ID, "container "+status.ID+", which the database does not know with it"
			strange = append(strange, l)
		}
	}
	return strange, nil
}

// sameShare says that two leases are of the same: a database that was restored
// may know another place, or another size, than a container was started with.
func sameShare(a, b *gpu.Lease) bool {
	return a.GPU == b.GPU && a.Mode == b.Mode && a.Profile == b.Profile && a.Placement == b.Placement &&
		a.MemoryBytes == b.MemoryBytes && a.ComputePercent == b.ComputePercent && a.Enforcement == b.Enforcement
}
