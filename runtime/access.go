package runtime

import (
	"net"
	"strconv"
	"time"

	"github.com/remotegpu/remotegpu/network/port"
)

// Access is a way for people to reach a service of an environment.
type Access struct {
	Service port.Service
	URL     string // never holds a token or a password
}

// Addresses tells where people reach what the node offers.
type Addresses interface {
	// Host is the host name or address by which people reach the published ports
	// of an environment of that name, in that project.
	Host(name, project string) string
	// Desktop is the page of a desktop at the gateway, without a token; "" when
	// the gateway is off.
	Desktop(envID string) string
}

// access builds every address of an environment that people are told, from its
// mappings and where the node is reached: the one place that does. A desktop at
// the gateway comes before the noVNC that an image brings. Custom ports have no
// protocol that would make a URL.
func access(env *Environment, at Addresses) []Access {
	if at == nil || !env.Held {
		return nil
	}
	var found []Access
	if env.Effective().Desktop != nil {
		if page := at.Desktop(env.ID); page != "" {
			found = append(found, Access{port.NoVNC, page})
		}
	}
	var host string
	now := time.Now()
	for i := range env.Ports {
		m := &env.Ports[i]
		form, known := accessForms()[m.Service]
		if !known || m.Protocol != port.TCP || !m.Live(now) {
			continue
		}
		if host == "" {
			host = at.Host(env.Name, env.Project)
		}
		scheme := form.scheme
		if m.Service == port.SSH && env.Login != "" { // else who asks is who he is at home
			scheme += env.Login + "@"
		}
		found = append(found, Access{m.Service, scheme + net.JoinHostPort(host, strconv.Itoa(int(m.External))) + form.path})
	}
	return found
}

type accessForm struct{ scheme, path string }

// accessForms are how the URL of a service is written. What an image serves
// itself has no certificate of ours.
func accessForms() map[port.Service]accessForm {
	return map[port.Service]accessForm{
		port.SSH: {"ssh://", ""}, port.RDP: {"rdp://", ""}, port.VNC: {"vnc://", ""}, // RFC 7869
		port.Jupyter: {"http://", "/"}, port.NoVNC: {"http://", "/vnc.html"},
	}
}
