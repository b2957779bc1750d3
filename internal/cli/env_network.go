package cli

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// networkFlags say what an environment may reach and how fast, as written.
type networkFlags struct {
	egress        string
	allow, groups []string
	in, out       string
}

const networkHelp = `Network: an environment reaches the internet, and neither private networks
nor those that the host is in. --egress allow has it reach what --allow names
and nothing else, --egress none nothing at all. With --egress open, --allow
opens what is closed otherwise. Destinations are written
ADDRESS[/BITS][:PORT[-PORT]][/tcp|/udp], as 198.51.100.0/24,
192.168.7.20:5000/tcp or [2001:db8::/32]:443. Environments of one project that share a --group reach
each other's addresses. --bandwidth-in and --bandwidth-out limit what it
receives and sends, in bits per second: 500k, 100M or 10G (powers of 1000).`

func (f *networkFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.egress, "egress", "", "where it may connect to: open, allow (what --allow names), none (default open)")
	flags.StringArrayVar(&f.allow, "allow", nil, "destination that it may connect to, see above")
	flags.StringArrayVar(&f.groups, "group", nil, "group of environments that reach each other")
	flags.StringVar(&f.in, "bandwidth-in", "", "limit of what it receives, such as 100M; 0: none")
	flags.StringVar(&f.out, "bandwidth-out", "", "limit of what it sends, such as 100M; 0: none")
}

// set says that one of the flags was given.
func (f *networkFlags) set(changed func(string) bool) bool {
	return slices.ContainsFunc([]string{"egress", "allow", "group", "bandwidth-in", "bandwidth-out"}, changed)
}

// apply changes a policy as the flags say: it adds to lists. Without a policy it
// makes one, and leaves it out where no flag was given.
func (f *networkFlags) apply(policy *remotegpuv1.NetworkPolicy, changed func(string) bool) (*remotegpuv1.NetworkPolicy, error) {
	if !f.set(changed) {
		return policy, nil
	}
	if policy == nil {
		policy = &remotegpuv1.NetworkPolicy{}
	}
	if changed("egress") {
		mode, known := map[string]remotegpuv1.EgressMode{
			"open": remotegpuv1.EgressMode_EGRESS_MODE_OPEN, "allow": remotegpuv1.EgressMode_EGRESS_MODE_ALLOW_LIST,
			"none": remotegpuv1.EgressMode_EGRESS_MODE_NONE,
		}[f.egress]
		if !known {
			return nil, usagef("use open, allow or none", "egress %q is none of these", f.egress)
		}
		if policy.Egress = mode; mode == remotegpuv1.EgressMode_EGRESS_MODE_NONE {
			policy.Allow = nil
		}
	}
	for _, text := range f.allow {
		destination, err := parseDestination(text)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(policy.GetAllow(), func(d *remotegpuv1.EgressDestination) bool { return sameDestination(d, destination) }) {
			policy.Allow = append(policy.Allow, destination)
		}
	}
	for _, name := range f.groups {
		if !slices.Contains(policy.GetGroups(), name) {
			policy.Groups = append(policy.Groups, name)
		}
	}
	for _, limit := range []struct {
		flag, text string
		into       *int64
	}{{"bandwidth-in", f.in, &policy.IngressBitsPerSecond}, {"bandwidth-out", f.out, &policy.EgressBitsPerSecond}} {
		if !changed(limit.flag) {
			continue
		}
		bits, err := parseSpeed(limit.text)
		if err != nil {
			return nil, err
		}
		*limit.into = bits
	}
	return policy, nil
}

// stayingAllowed says which destinations, the first of a policy's, stay allowed
// although where it may connect to was changed from before; "" when there is
// nothing to say. A list that bounded everything adds to what is open then, and
// nobody who opens an environment to the internet means that.
func stayingAllowed(policy *remotegpuv1.NetworkPolicy, before remotegpuv1.EgressMode, staying int) string {
	opened := policy.GetEgress() == remotegpuv1.EgressMode_EGRESS_MODE_OPEN && before == remotegpuv1.EgressMode_EGRESS_MODE_ALLOW_LIST
	if !opened || staying == 0 {
		return ""
	}
	texts := make([]string, 0, staying)
	for _, d := range policy.GetAllow()[:min(staying, len(policy.GetAllow()))] {
		texts = append(texts, destinationText(d))
	}
	return fmt.Sprintf("it stays allowed to reach %s, in private networks and those that the host is in too; --disallow takes that away", strings.Join(texts, ", "))
}

// withoutNetwork takes destinations and groups away.
func withoutNetwork(policy *remotegpuv1.NetworkPolicy, disallow, ungroup []string) error {
	for _, text := range disallow {
		gone, err := parseDestination(text)
		if err != nil {
			return err
		}
		before := len(policy.GetAllow())
		policy.Allow = slices.DeleteFunc(policy.GetAllow(), func(d *remotegpuv1.EgressDestination) bool { return sameDestination(d, gone) })
		if len(policy.GetAllow()) == before {
			return usagef("remotegpu env get shows those it has", "destination %q is not allowed", text)
		}
	}
	for _, name := range ungroup {
		before := len(policy.GetGroups())
		policy.Groups = slices.DeleteFunc(policy.GetGroups(), func(group string) bool { return group == name })
		if len(policy.GetGroups()) == before {
			return usagef("remotegpu env get shows those it has", "it is not in group %q", name)
		}
	}
	return nil
}

// parseDestination reads ADDRESS[/BITS][:PORT[-PORT]][/tcp|/udp]. The node looks
// at the address.
func parseDestination(text string) (*remotegpuv1.EgressDestination, error) {
	bad := func(why string) error {
		return usagef("write ADDRESS[/BITS][:PORT[-PORT]][/tcp|/udp], for example 198.51.100.0/24 or 192.168.7.20:5000/tcp",
			"destination %q: %s", text, why)
	}
	destination, rest := &remotegpuv1.EgressDestination{}, text
	for name, protocol := range map[string]remotegpuv1.Protocol{"tcp": remotegpuv1.Protocol_PROTOCOL_TCP, "udp": remotegpuv1.Protocol_PROTOCOL_UDP} {
		if before, found := strings.CutSuffix(rest, "/"+name); found {
			rest, destination.Protocol = before, protocol
		}
	}
	address, ports, limited := strings.Cut(rest, ":")
	if bracketed, ok := strings.CutPrefix(rest, "["); ok {
		address, ports, limited = strings.Cut(bracketed, "]:")
		if !limited {
			if address, ok = strings.CutSuffix(bracketed, "]"); !ok {
				return nil, bad("its bracket is not closed")
			}
		}
	} else if strings.Contains(ports, ":") { // of IPv6, without a port
		address, limited = rest, false
	}
	if address == "" {
		return nil, bad("it names no address")
	}
	destination.Cidr = address
	if !limited {
		return destination, nil
	}
	low, high, span := strings.Cut(ports, "-")
	if !span {
		high = low
	}
	first, err := strconv.ParseUint(low, 10, 16)
	last, failed := strconv.ParseUint(high, 10, 16)
	if err != nil || failed != nil || first == 0 || last < first {
		return nil, bad("its ports are not from 1 to 65535, the lower one first")
	}
	destination.FirstPort, destination.LastPort = int32(first), int32(last)
	return destination, nil
}

// alone is an address, or a network of more, without the length of a network of
// one.
func alone(cidr string) string {
	if strings.Contains(cidr, ":") {
		return strings.ToLower(strings.TrimSuffix(cidr, "/128"))
	}
	return strings.TrimSuffix(cidr, "/32")
}

// sameDestination compares what was written with what the node has made of it:
// an address is a network of one.
func sameDestination(a, b *remotegpuv1.EgressDestination) bool {
	return alone(a.GetCidr()) == alone(b.GetCidr()) && a.GetProtocol() == b.GetProtocol() &&
		a.GetFirstPort() == b.GetFirstPort() && max(a.GetLastPort(), a.GetFirstPort()) == max(b.GetLastPort(), b.GetFirstPort())
}

// parseSpeed reads bits per second.
func parseSpeed(text string) (int64, error) {
	units := map[byte]float64{'k': 1e3, 'K': 1e3, 'M': 1e6, 'm': 1e6, 'G': 1e9, 'g': 1e9}
	number, unit := text, 1.0
	if text != "" && units[text[len(text)-1]] != 0 {
		number, unit = text[:len(text)-1], units[text[len(text)-1]]
	}
	value, err := strconv.ParseFloat(number, 64)
	bits := value * unit
	if err != nil || math.IsNaN(bits) || bits < 0 || bits > 1e15 || strings.ContainsAny(number, "xXpP_+") {
		return 0, usagef("write bits per second such as 500k, 100M or 10G", "speed %q is not one", text)
	}
	return int64(bits), nil
}

// speed writes bits per second for people.
func speed(bits int64) string {
	switch {
	case bits >= 1e9:
		return strconv.FormatFloat(float64(bits)/1e9, 'f', -1, 64) + " Gbit/s"
	case bits >= 1e6:
		return strconv.FormatFloat(float64(bits)/1e6, 'f', -1, 64) + " Mbit/s"
	}
	return strconv.FormatFloat(float64(bits)/1e3, 'f', -1, 64) + " kbit/s"
}

// networkRows show a policy.
func networkRows(policy *remotegpuv1.NetworkPolicy) (rows [][]string) {
	if policy == nil {
		return nil
	}
	mode := map[remotegpuv1.EgressMode]string{
		remotegpuv1.EgressMode_EGRESS_MODE_ALLOW_LIST: "allow", remotegpuv1.EgressMode_EGRESS_MODE_NONE: "none",
	}[policy.GetEgress()]
	rows = append(rows, []string{"Egress", orElse(mode, "open")})
	for _, d := range policy.GetAllow() {
		rows = append(rows, []string{"Allowed", destinationText(d)})
	}
	rows = append(rows, []string{"Groups", strings.Join(policy.GetGroups(), ", ")})
	if bits := policy.GetIngressBitsPerSecond(); bits != 0 {
		rows = append(rows, []string{"Receives at most", speed(bits)})
	}
	if bits := policy.GetEgressBitsPerSecond(); bits != 0 {
		rows = append(rows, []string{"Sends at most", speed(bits)})
	}
	return rows
}

func destinationText(d *remotegpuv1.EgressDestination) string {
	text := alone(d.GetCidr())
	if d.GetFirstPort() != 0 {
		if strings.Contains(text, ":") {
			text = "[" + text + "]"
		}
		text += fmt.Sprintf(":%d", d.GetFirstPort())
		if d.GetLastPort() > d.GetFirstPort() {
			text += fmt.Sprintf("-%d", d.GetLastPort())
		}
	}
	if d.GetProtocol() != remotegpuv1.Protocol_PROTOCOL_UNSPECIFIED {
		text += "/" + state(d.GetProtocol(), "PROTOCOL_")
	}
	return text
}
