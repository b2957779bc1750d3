package runtime

import (
	"slices"
	"strings"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// maxLostLogs bounds how many environments the condition names.
const maxLostLogs = 8

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
	all := strings.Join(names[:min(len(names), maxLostLogs)], ", ")
	if len(names) > maxLostLogs {
		all += " and more"
	}
	m.setCondition(problem.LogWriterDied, problem.New(problem.LogWriterDied,
		"the programs that write the logs of %d environments were killed; what these write is kept nowhere, and ends who writes it (SIGPIPE): %s", len(names), all).
		WithHint("restart them: remotegpu env restart %s", names[0]))
}
