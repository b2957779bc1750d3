package runtime

import (
	"context"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
)

// ListPorts returns mappings by host port, then by age, and the cursor of the
// next page. environment is an id or a name, looked up in the filter's project,
// or DefaultProject; "": all. Where the filter asks for what was, it may also be
// the id of one that is gone, or the name of such, when none has it now.
// ENV_NOT_FOUND: there is none, and never was as far as is known.
func (m *Manager) ListPorts(ctx context.Context, environment string, filter port.Filter) ([]port.Mapping, string, error) {
	if environment == "" {
		return m.cfg.Ports.Mappings(ctx, filter)
	}
	env, unknown := m.Get(ctx, filter.Project, environment)
	switch {
	case unknown == nil:
		filter.EnvID = env.ID
		return m.cfg.Ports.Mappings(ctx, filter)
	case problem.Of(unknown) == nil || problem.Of(unknown).Reason != problem.EnvNotFound,
		!filter.IncludeReleased && filter.At.IsZero():
		return nil, "", unknown
	}
	if id, ok := parseID(environment); ok {
		filter.EnvID = id
	} else {
		filter.EnvName = environment
		if filter.Project == "" {
			filter.Project = DefaultProject
		}
	}
	found, next, err := m.cfg.Ports.Mappings(ctx, filter)
	if err != nil || len(found) > 0 || filter.After != "" {
		return found, next, err
	}
	ever, _, err := m.cfg.Ports.Mappings(ctx, port.Filter{
		EnvID: filter.EnvID, EnvName: filter.EnvName, Project: filter.Project, IncludeReleased: true, Limit: 1,
	})
	if err == nil && len(ever) == 0 {
		err = unknown
	}
	return nil, "", err
}
