package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// DNS is the node's DNS responder.
type DNS struct {
	Enabled        bool      `toml:"enabled" comment:"Answer questions about names. Off: environments have the host's name servers and no names."`
	Zone           string    `toml:"zone" comment:"Zone in which environments have their names: <environment>.<project>.<zone>."`
	Zones          []DNSZone `toml:"zones" comment:"Further zones with the same names, such as one that is delegated to this node: [[dns.zones]] with name, ns (its name servers), mailbox, and public = true where people's name servers find it: then addresses for people have names of it."`
	Listen         []string  `toml:"listen" comment:"Addresses of the host, or address:port, where others than environments may ask. Empty: none."`
	Allow          []string  `toml:"allow" comment:"Networks (CIDR) that may ask there. For a public zone: 0.0.0.0/0 and ::/0."`
	Advertise      []string  `toml:"advertise" comment:"Addresses that names lead to outside of environments. Empty: public_host if that is one, else the host's IPv4 address."`
	PrivateDomains []string  `toml:"private_domains" comment:"Domains that may have private addresses and are asked for though they look private, besides the search domains of resolv_conf."`
	RateLimit      int       `toml:"rate_limit" comment:"Answers over UDP in a second to an environment. 0: no limit."`
	RateOutside    int       `toml:"rate_outside" comment:"The same to a /24 or /64 of others, whose addresses may be forged."`
	RateSlip       int       `toml:"rate_slip" comment:"Beyond the limit one answer in so many says to use TCP, the others are not sent. 0: none is."`
	RateExempt     []string  `toml:"rate_exempt" comment:"Networks (CIDR) that are not limited."`
}

// DNSZone is a further zone.
type DNSZone struct {
	Name    string   `toml:"name"`
	NS      []string `toml:"ns"`
	Mailbox string   `toml:"mailbox"`
	Public  bool     `toml:"public"`
}

// PublicZone is the zone whose names people resolve, "" when there is none.
func (d *DNS) PublicZone() string {
	for _, zone := range d.Zones {
		if d.Enabled && zone.Public {
			return strings.TrimSuffix(zone.Name, ".")
		}
	}
	return ""
}

// maxRate is the most that a limit of answers in a second may be.
const maxRate = 1_000_000

func defaultDNS() DNS {
	return DNS{
		Enabled: true, Zone: "gpu.internal", RateLimit: 1000, RateOutside: 200, RateSlip: 2,
		Allow: []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "fc00::/7", "fe80::/10", "::1/128"},
	}
}

func (d *DNS) check() error {
	var errs []error
	if d.Zone == "" && d.Enabled {
		errs = append(errs, fault("dns.zone", "such as gpu.internal; or set dns.enabled = false", "it is empty"))
	}
	errs = append(errs, d.checkNames(), d.checkZones(), d.checkNetworks())
	for field, rate := range map[string]int{"dns.rate_limit": d.RateLimit, "dns.rate_outside": d.RateOutside} {
		if rate < 0 || rate > maxRate {
			errs = append(errs, fault(field, "", "it is 0 to %d", maxRate))
		}
	}
	if d.RateSlip < 0 {
		errs = append(errs, fault("dns.rate_slip", "", "it is at least 0"))
	}
	return errors.Join(errs...)
}

func (d *DNS) checkNames() error {
	var errs []error
	names := map[string]string{"dns.zone": d.Zone}
	for i, zone := range d.Zones {
		field := fmt.Sprintf("dns.zones[%d]", i)
		names[field+".name"], names[field+".mailbox"] = zone.Name, zone.Mailbox
		if zone.Name == "" {
			errs = append(errs, fault(field+".name", "name the zone", "it is empty"))
		}
		if zone.Public && d.Enabled && len(d.Listen) == 0 {
			errs = append(errs, fault(field+".public", "set dns.listen and dns.allow", "nobody but environments can ask for its names"))
		}
		for j, server := range zone.NS {
			names[fmt.Sprintf("%s.ns[%d]", field, j)] = server
		}
	}
	for i, domain := range d.PrivateDomains {
		names[fmt.Sprintf("dns.private_domains[%d]", i)] = domain
	}
	for field, name := range names {
		if name != "" && !isDomain(name) {
			errs = append(errs, fault(field, "write it like gpu.internal", "%q is not a domain name", name))
		}
	}
	return errors.Join(errs...)
}

// checkZones refuses zones that are in each other's way: what one holds would be
// a name of an environment in the other. One of a single label would take a
// whole top-level domain away.
func (d *DNS) checkZones() error {
	if !d.Enabled {
		return nil
	}
	zones := []struct{ field, name string }{{"dns.zone", d.Zone}}
	for i, zone := range d.Zones {
		zones = append(zones, struct{ field, name string }{fmt.Sprintf("dns.zones[%d].name", i), zone.Name})
	}
	var errs []error
	for i := range zones {
		zone := &zones[i]
		if zone.name = strings.ToLower(strings.TrimSuffix(zone.name, ".")); !isDomain(zone.name) {
			continue // it is told already
		}
		if !strings.Contains(zone.name, ".") {
			errs = append(errs, fault(zone.field, "write it like gpu.internal", "%q is a top-level domain: no other name in it would be found", zone.name))
		}
		for _, before := range zones[:i] {
			switch {
			case before.name == zone.name:
				errs = append(errs, fault(zone.field, "name it once, or name another", "%q is %s as well", zone.name, before.field))
			case strings.HasSuffix(zone.name, "."+before.name), strings.HasSuffix(before.name, "."+zone.name):
				errs = append(errs, fault(zone.field, "use zones that are not within one another",
					"%q and %s %q are within one another: names of environments in one would hide those in the other", zone.name, before.field, before.name))
			}
		}
	}
	return errors.Join(errs...)
}

func (d *DNS) checkNetworks() error {
	var errs []error
	for field, networks := range map[string][]string{"dns.allow": d.Allow, "dns.rate_exempt": d.RateExempt} {
		for _, network := range networks {
			parsed, err := netip.ParsePrefix(network)
			if err == nil && parsed != parsed.Masked() {
				errs = append(errs, fault(field, fmt.Sprintf("write %s for the network, %s/%d for the address", parsed.Masked(), parsed.Addr(), parsed.Addr().BitLen()),
					"%q is an address with the length of a network", network))
			}
			if err != nil {
				errs = append(errs, fault(field, "write it like 192.0.2.0/24", "%q is not a network", network))
			}
		}
	}
	for _, address := range d.Advertise {
		if parsed, err := netip.ParseAddr(address); err != nil || parsed.Zone() != "" || parsed.IsUnspecified() {
			errs = append(errs, fault("dns.advertise", "write addresses, not names", "%q is not an address", address))
		}
	}
	_, err := d.Addresses()
	return errors.Join(append(errs, err)...)
}

// dnsPort is where name servers are asked.
const dnsPort = 53

// Addresses are those of Listen, with their ports. CONFIG_INVALID.
func (d *DNS) Addresses() ([]netip.AddrPort, error) {
	var addresses []netip.AddrPort
	for _, text := range d.Listen {
		address, err := netip.ParseAddrPort(text)
		if err != nil {
			var alone netip.Addr
			if alone, err = netip.ParseAddr(text); err == nil {
				address = netip.AddrPortFrom(alone, dnsPort)
			}
		}
		if err != nil || address.Addr().IsUnspecified() || address.Port() == 0 {
			// All of them would be in the way of systemd-resolved and dnsmasq.
			return nil, fault("dns.listen", "write each address of the host, like 192.0.2.7", "%q is not an address of one interface", text)
		}
		if slices.Contains(addresses, address) {
			return nil, fault("dns.listen", "name it once", "%q is named twice", text)
		}
		addresses = append(addresses, address)
	}
	return addresses, nil
}

// CheckListen refuses addresses of Listen that are in a range of environments:
// these ask at the first of it anyway, and others do not get there.
// CONFIG_INVALID. What is no address at all Addresses refuses.
func (d *DNS) CheckListen(ranges ...netip.Prefix) error {
	addresses, err := d.Addresses()
	if err != nil || !d.Enabled {
		return nil //nolint:nilerr // it is told already
	}
	for _, address := range addresses {
		for _, environments := range ranges {
			if environments.Contains(address.Addr()) {
				return fault("dns.listen", "name addresses that others reach the host by; environments need none",
					"%s is in %s, which is for environments", address.Addr(), environments)
			}
		}
	}
	return nil
}

// isDomain says whether a name is made of labels of letters, digits, - and _.
func isDomain(name string) bool {
	name = strings.TrimSuffix(name, ".")
	if len(name) > 200 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
			return false
		}
	}
	return true
}
