package runtime

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// NetworkWarnings are what the caller should know about the network and the host
// ports of an environment.
func (e *Environment) NetworkWarnings() []string {
	if !e.CutOff {
		return e.Conflicts
	}
	return append(slices.Clone(e.Conflicts), "it runs without a network, which somebody has removed; restart it")
}

// cutOffs are the environments that the last pass found running without a
// network, and since when each runs: a later run has another network.
type cutOffs struct {
	mu   sync.Mutex
	byID map[string]time.Time
}

func (c *cutOffs) set(byID map[string]time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.byID = byID
}

// has tells whether the present run of an environment has lost its network.
func (c *cutOffs) has(env *Environment) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	since, found := c.byID[env.ID]
	return found && env.Alive() && env.StartedAt.Equal(since)
}

// reportCutOff keeps a condition while environments run without a network, and
// a warning of each. A pass that could not see who has one changes nothing.
func (m *Manager) reportCutOff(o *observed) {
	if o.cutOff == nil {
		return
	}
	byID := make(map[string]time.Time)
	var names []string
	for _, env := range o.environments {
		if o.cutOff[env.ID] {
			byID[env.ID] = env.StartedAt
			names = append(names, env.Name)
		}
	}
	m.cutOff.set(byID)
	if len(names) == 0 {
		m.setCondition(problem.NetworkLost, nil)
		return
	}
	slices.Sort(names)
	m.setCondition(problem.NetworkLost, problem.New(problem.NetworkLost,
		"the networks of %d environments were removed while they run; they reach nobody and nobody reaches them: %s", len(names), someOf(names)).
		WithHint("restart them: remotegpu env restart %s", names[0]))
}

// pinAgain gives an environment that runs its network back, out of the namespace
// that its process lives in.
func (m *Manager) pinAgain(ctx context.Context, o *observed, id string) error {
	unlock, env, err := m.lockIdle(ctx, id)
	if env == nil {
		return err
	}
	defer unlock()
	if !env.Alive() {
		return nil // the end of its run has come first
	}
	namespace, err := m.cfg.Engine.NetNS(ctx, id)
	if err != nil {
		return ignoreNotFound(err)
	}
	defer func() { _ = namespace.Close() }()
	if err := m.cfg.Networks.Pin(ctx, id, env.Slot, namespace); err != nil {
		return fmt.Errorf("give environment %s its network back: %w", id, err)
	}
	o.note(func() { delete(o.cutOff, id) })
	m.cfg.Log.InfoContext(ctx, "an environment has its network back, which somebody had removed while it ran", "environment", id)
	return nil
}

// maxNamed bounds how many environments a condition names.
const maxNamed = 8

// someOf names environments in a condition.
func someOf(names []string) string {
	all := strings.Join(names[:min(len(names), maxNamed)], ", ")
	if len(names) > maxNamed {
		all += " and more"
	}
	return all
}
