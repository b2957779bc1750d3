package runtime

import (
	"path/filepath"
	"slices"

	"github.com/remotegpu/remotegpu/network/port"
)

// nodeVariables are the variables that the node sets in every environment.
// Images start their optional servers by them.
func nodeVariables(env *Environment) []string {
	variables := []string{"REMOTEGPU_ENVIRONMENT=" + env.ID, "REMOTEGPU_NAME=" + env.Name}
	for service, variable := range map[port.Service]string{port.VNC: "REMOTEGPU_VNC=1", port.NoVNC: "REMOTEGPU_NOVNC=1"} {
		if offers(&env.Spec, service) {
			variables = append(variables, variable)
		}
	}
	slices.Sort(variables)
	return variables
}

// userVariables are the variables that the request asks for, sorted so that
// the same spec renders the same container.
func userVariables(spec *Spec) []string {
	variables := make([]string, 0, len(spec.Env))
	for key, value := range spec.Env {
		variables = append(variables, key+"="+value)
	}
	slices.Sort(variables)
	return variables
}

func (m *Manager) logPath(id string) string {
	return filepath.Join(m.cfg.LogDir, id+".log")
}
