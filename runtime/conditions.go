package runtime

import (
	"slices"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// Condition is something about the node that is not as it should be.
type Condition struct {
	Reason  problem.Reason
	Message string
	Hint    string
}

// Conditions returns what is not as it should be.
func (m *Manager) Conditions() []Condition {
	m.conditionsMu.Lock()
	defer m.conditionsMu.Unlock()
	conditions := make([]Condition, 0, len(m.conditions))
	for _, condition := range m.conditions {
		conditions = append(conditions, condition)
	}
	return conditions
}

// setContainerdCondition remembers that containerd is not there, or does not answer
// in time; nil clears both.
func (m *Manager) setContainerdCondition(err error) {
	var away, late error
	if slices.ContainsFunc(problem.All(err), func(p *problem.Problem) bool { return p.Reason == problem.ContainerdTimeout }) {
		late = err
	} else {
		away = err
	}
	m.setCondition(problem.ContainerdDown, away)
	m.setCondition(problem.ContainerdTimeout, late)
}

// setCondition remembers a condition by what was tried; nil clears it.
func (m *Manager) setCondition(reason problem.Reason, err error) {
	m.conditionsMu.Lock()
	defer m.conditionsMu.Unlock()
	if err == nil {
		delete(m.conditions, reason)
		return
	}
	p := problem.Of(err)
	m.conditions[reason] = Condition{Reason: reason, Message: err.Error(), Hint: p.Hint}
}
