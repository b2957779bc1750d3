package runtime

import (
	"errors"
	"fmt"

	"github.com/remotegpu/remotegpu/network/policy"
)

// declaredPolicy is an environment's network policy with what it takes to put
// it in force.
func declaredPolicy(env *Environment) policy.Declared {
	declared := policy.Declared{EnvID: env.ID, Project: env.Project, Address: env.Address}
	if env.Spec.Network != nil {
		declared.Policy = *env.Spec.Network
	}
	return declared
}

// policies are the network policies that should be in force: those of all
// environments that have an address, whether they run or not. The default is
// among them: of an environment that is not, the one in force stays.
func policies(envs []*Environment) []policy.Declared {
	var all []policy.Declared
	for _, env := range envs {
		if env.Held && env.Address.IsValid() {
			all = append(all, declaredPolicy(env))
		}
	}
	return all
}

// checkNetwork completes and checks a network policy.
func (m *Manager) checkNetwork(spec *Spec) error {
	if spec.Network == nil {
		return nil
	}
	copied := *spec.Network // the caller may use the request again
	p := &copied
	spec.Network, p.Egress = p, p.Mode()
	errs := []error{checkAllow(p), checkGroups(p.Groups)}
	for _, speed := range []struct {
		field string
		bits  int64
	}{{"ingress_bits_per_second", p.IngressBits}, {"egress_bits_per_second", p.EgressBits}} {
		if speed.bits != 0 && (speed.bits < policy.MinBits || speed.bits > policy.MaxBits) {
			errs = append(errs, invalid(fieldNetwork+"."+speed.field, "give 64000 (64 kbit/s) to 100000000000 (100 Gbit/s), or 0 for no limit",
				"%d bits per second are no speed to limit to", speed.bits))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return m.cfg.Networks.CheckPolicy(*p, fieldNetwork)
}

func checkAllow(p *policy.Policy) error {
	var errs []error
	switch {
	case p.Egress == policy.None && len(p.Allow) > 0:
		errs = append(errs, invalid(fieldNetwork+".allow", "leave it out, or use allow-list", "egress none allows nothing, and destinations are named"))
	case p.Egress == policy.AllowList && len(p.Allow) == 0:
		errs = append(errs, invalid(fieldNetwork+".allow", "name destinations, or use egress none", "an allow list without destinations allows nothing"))
	case len(p.Allow) > policy.MaxAllow:
		errs = append(errs, invalid(fieldNetwork+".allow", "name larger networks", "%d destinations are more than %d", len(p.Allow), policy.MaxAllow))
	}
	seen := make(map[policy.Destination]int)
	for i, d := range p.Allow {
		field := fmt.Sprintf("%s.allow[%d]", fieldNetwork, i)
		switch before, twice := seen[d]; {
		case !d.Prefix.IsValid():
			errs = append(errs, invalid(field+".cidr", "write an address or network, for example 198.51.100.0/24 or 2001:db8::/32",
				"the destination is no network"))
		case d.Prefix != d.Prefix.Masked(): // whoever wrote it meant the one or the other
			errs = append(errs, invalid(field+".cidr", fmt.Sprintf("write %s for the network, %s for the address", d.Prefix.Masked(), d.Prefix.Addr()),
				"%s is an address with the length of a network", d.Prefix))
		case d.First == 0 && d.Last != 0 || d.Last < d.First:
			errs = append(errs, invalid(field+".last_port", "give first_port too, and not a higher one", "ports %d to %d are no range", d.First, d.Last))
		case twice:
			errs = append(errs, invalid(field, "give it once", "%s is also destination %d", d, before))
		}
		seen[d] = i
	}
	return errors.Join(errs...)
}

func checkGroups(groups []string) error {
	var errs []error
	if len(groups) > policy.MaxGroups {
		errs = append(errs, invalid(fieldNetwork+".groups", "use fewer", "%d groups are more than %d", len(groups), policy.MaxGroups))
	}
	seen := make(map[string]bool)
	for i, name := range groups {
		field := fmt.Sprintf("%s.groups[%d]", fieldNetwork, i)
		switch {
		case !dnsLabel.MatchString(name):
			errs = append(errs, invalid(field, "use 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit", "%q is not a name of a group", name))
		case seen[name]:
			errs = append(errs, invalid(field, "give it once", "group %q is given twice", name))
		}
		seen[name] = true
	}
	return errors.Join(errs...)
}
