package cli

import (
	"maps"
	"slices"
	"strconv"
	"time"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// mergedUlimits are the limits there are, with others added or in their place.
func mergedUlimits(there, added []*remotegpuv1.Ulimit) []*remotegpuv1.Ulimit {
	all := slices.Clone(there)
	for _, limit := range added {
		i := slices.IndexFunc(there, func(l *remotegpuv1.Ulimit) bool { return l.GetName() == limit.GetName() })
		if i < 0 {
			all = append(all, limit)
			continue
		}
		all[i] = limit
	}
	return all
}

// merged are the pairs there are, with some more and without others.
func merged(what string, there, added map[string]string, removed []string) (map[string]string, error) {
	all := make(map[string]string, len(there)+len(added))
	maps.Copy(all, there)
	for _, key := range removed {
		if _, found := all[key]; !found {
			return nil, usagef("remotegpu env get shows those it has", "there is no %s %q", what, key)
		}
		delete(all, key)
	}
	maps.Copy(all, added)
	return all, nil
}

// mountsOf are the mounts there are, with more and without others.
func (f *updateFlags) mountsOf(e *remotegpuv1.Environment, added []*remotegpuv1.Mount) ([]*remotegpuv1.Mount, error) {
	all := slices.Clone(e.GetSpec().GetMounts())
	take := func(target string) bool {
		before := len(all)
		all = slices.DeleteFunc(all, func(m *remotegpuv1.Mount) bool { return m.GetTarget() == target })
		return len(all) < before
	}
	for _, target := range f.unmount {
		if !take(target) {
			return nil, usagef("remotegpu env get shows those it has", "nothing is mounted at %q", target)
		}
	}
	for _, mount := range added {
		take(mount.GetTarget())
	}
	return append(all, added...), nil
}

// portsOf are the ports there are, with more and without others. Those that
// stay are asked for by their host port, so that no other goes in their place.
func (f *updateFlags) portsOf(e *remotegpuv1.Environment) ([]*remotegpuv1.PortRequest, error) {
	all := slices.Clone(e.GetSpec().GetPorts())
	if len(f.unpublish) > 0 {
		held := slices.Clone(e.GetPortMappings())
		for _, word := range f.unpublish {
			host, err := strconv.ParseUint(word, 10, 16)
			before := len(held)
			held = slices.DeleteFunc(held, func(m *remotegpuv1.PortMapping) bool {
				return err == nil && m.GetExternalPort() == int32(host) || err != nil && state(m.GetServiceType(), "SERVICE_TYPE_") == word
			})
			if len(held) == before {
				return nil, usagef("name a host port or a service: remotegpu env get shows those it has", "port %q is not published", word)
			}
		}
		all = nil
		for _, m := range held {
			all = append(all, &remotegpuv1.PortRequest{
				ServiceType: m.GetServiceType(), InternalPort: m.GetInternalPort(), ExternalPort: m.GetExternalPort(),
				Protocol: m.GetProtocol(), Description: m.GetDescription(), AllowedSources: m.GetAllowedSources(), ExpiresAt: m.GetExpiresAt(),
			})
		}
	}
	for _, text := range f.ports {
		port, err := parsePort(text, time.Now())
		if err != nil {
			return nil, err
		}
		all = append(all, port)
	}
	return all, nil
}
