package node

import (
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/config"
)

// White-box: a whole node would be needed otherwise.
func TestHostOfPublishedPorts(t *testing.T) {
	t.Parallel()
	n := &Node{}
	n.hosts.look = func() []string { return []string{"gpu1.example.com"} }
	n.cfg.DNS.Enabled = true
	n.cfg.DNS.Zones = []config.DNSZone{{Name: "lab.example.com"}}
	at := addresses{node: n}
	if got := at.Host("desk", "team"); got != "gpu1.example.com" {
		t.Errorf("no zone is public: %q", got)
	}
	n.cfg.DNS.Zones = append(n.cfg.DNS.Zones, config.DNSZone{Name: "env.example.com.", Public: true})
	if got := at.Host("desk", "team"); got != "desk.team.env.example.com" {
		t.Errorf("with a public zone: %q", got)
	}
	n.cfg.DNS.Zones[1].Name = strings.Repeat("long.", 48) + "example"
	if got := at.Host("desk", "team"); got != "gpu1.example.com" {
		t.Errorf("the name would be too long: %q", got)
	}
	n.cfg.DNS.Zones[1].Name, n.cfg.DNS.Enabled = "env.example.com", false
	if got := at.Host("desk", "team"); got != "gpu1.example.com" {
		t.Errorf("names are off: %q", got)
	}
}

// A daemon that started before the host had an address tells the one it has now.
func TestHostsAreLookedUpAgain(t *testing.T) {
	t.Parallel()
	found := "127.0.0.1"
	n := &Node{}
	n.hosts.look = func() []string { return []string{found} }
	at := addresses{node: n}
	if got := at.Host("desk", "team"); got != found {
		t.Errorf("at first: %q", got)
	}
	found = "192.0.2.1"
	n.hosts.until = time.Time{}
	if got := at.Host("desk", "team"); got != found {
		t.Errorf("once the host has an address: %q", got)
	}
}
