package runtime

import (
	"fmt"
	"strings"

	"github.com/remotegpu/remotegpu/network/dns"
)

// In a zone environments and projects are side by side: NAME.ZONE is an
// environment of the asker's project, and what is below PROJECT.ZONE are names of
// that project. Where both are called the same, the environment has the name
// itself and its services ("_ssh._tcp"), and the project what is below. By the
// whole name, NAME.PROJECT.ZONE, everything is found.

// sharesName tells whether the short name of an environment is a project's as
// well, for anybody who asks by it: on the LAN that are those of the project
// "default", inside those of the environment's own project, which knows no other.
func (n *names) sharesName(name, project string) bool {
	if name == project {
		return true
	}
	return project == DefaultProject && n.any(func(h *dns.Host) bool { return h.Project == name })
}

// any tells whether a host is as asked for, among those that have names.
func (n *names) any(is func(*dns.Host) bool) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, host := range n.hosts {
		if is(host) {
			return true
		}
	}
	return false
}

// nameWarnings are what the owner of a new environment should know of its name.
func (m *Manager) nameWarnings(name, project string) (warnings []string) {
	if m.cfg.Names == nil {
		return nil
	}
	zone := m.cfg.Names.Zones()[0]
	if m.names.sharesName(name, project) {
		warnings = append(warnings, fmt.Sprintf("a project is called %q as well: what is below %s.%s are its names; those below the environment are found by the whole name alone, *.%s.%s.%s",
			name, name, zone, name, project, zone))
	}
	if project != DefaultProject && m.names.any(func(h *dns.Host) bool { return h.Project == DefaultProject && h.Name == project }) {
		warnings = append(warnings, fmt.Sprintf("environment %q of project %s is called as this project: names below it are found by the whole name alone now, *.%s.%s.%s",
			project, DefaultProject, project, DefaultProject, zone))
	}
	return warnings
}

// recordWarnings are what whoever adds a record should know of where it is found.
func (m *Manager) recordWarnings(r *DNSRecord) []string {
	labels := strings.Split(r.Name, ".")
	if r.Alias || r.Name == "" || strings.HasPrefix(labels[len(labels)-1], "_") || !m.names.sharesName(r.EnvName, r.Project) {
		return nil
	}
	zone := m.cfg.Names.Zones()[0]
	return []string{fmt.Sprintf("a project is called %q as well: %s.%s is a name of its; the record is found as %s.%s.%s",
		r.EnvName, r.Owner(), zone, r.Owner(), r.Project, zone)}
}
