package runtime

import (
	"slices"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// reportLostLogs keeps a condition while environments run whose logs nobody
// writes.
func (m *Manager) reportLostLogs(o *observed) {
	var names []string
	for _, env := range o.environments {
		if o.containers[env.ID].LogLost && env.Operation == "" {
			names = append(names, env.Name)
		}
	}
	if len(names) == 0 {
		m.setCondition(problem.LogWriterDied, nil)
		return
	}
	slices.Sort(names)
	m.setCondition(problem.LogWriterDied, problem.New(problem.LogWriterDied,
		"the programs that write the logs of %d environments were killed; what these write is kept nowhere, and ends who writes it (SIGPIPE): %s", len(names), someOf(names)).
		WithHint("restart them: remotegpu env restart %s", names[0]))
}
