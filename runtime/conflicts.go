package runtime

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// portConflicts are host ports of environments that something else on the host
// uses too, in sentences.
type portConflicts struct {
	mu   sync.Mutex
	byID map[string][]string
}

// of are those of an environment.
func (c *portConflicts) of(envID string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.byID[envID]
}

func (c *portConflicts) set(byID map[string][]string) (changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed = !maps.EqualFunc(c.byID, byID, slices.Equal)
	c.byID = byID
	return changed
}

// maxConflicts bounds how many conflicts the condition spells out.
const maxConflicts = 8

// lookForConflicts keeps a condition while host ports of environments are used
// by something else too. They stay the environments': packets get there.
func (m *Manager) lookForConflicts(ctx context.Context) error {
	conflicts, err := m.cfg.Ports.Conflicts(ctx)
	if err != nil && len(conflicts) == 0 {
		return err
	}
	byID := make(map[string][]string)
	var texts []string
	for _, conflict := range conflicts {
		text := conflict.String()
		byID[conflict.Mapping.EnvID] = append(byID[conflict.Mapping.EnvID], text)
		texts = append(texts, text)
	}
	changed := m.conflicts.set(byID)
	if len(texts) == 0 {
		m.setCondition(problem.PortConflict, nil)
		return err
	}
	all := strings.Join(texts[:min(len(texts), maxConflicts)], "; ")
	if more := len(texts) - maxConflicts; more > 0 {
		all += "; and more"
	}
	found := problem.New(problem.PortConflict, "%s", all).
		WithHint("end the other, or give the environment another port: remotegpu port add, then remotegpu port rm")
	if changed {
		m.cfg.Log.WarnContext(ctx, "host ports of environments are used by others too", "ports", all)
	}
	m.setCondition(problem.PortConflict, found)
	return err
}
