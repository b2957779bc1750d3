package netbench

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// White-box: a run that shows it needs the programs, and half a minute.

// appended is how docker adds a port, in front how a program does that inserts,
// and has a chain for each container.
const (
	appendedRules = `*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
-A FORWARD -o docker0 -j DOCKER
{{-A DOCKER -d ADDRESS/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 22 -j ACCEPT}}
COMMIT
*nat
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
{{-A POSTROUTING -s ADDRESS/32 -d ADDRESS/32 -p tcp -m tcp --dport 22 -j MASQUERADE}}
-A DOCKER -i docker0 -j RETURN
{{-A DOCKER ! -i docker0 -p tcp -m tcp --dport PORT -j DNAT --to-destination ADDRESS:22}}
COMMIT
`
	insertedRules = `*nat
:POSTROUTING ACCEPT [0:0]
:CNI-DNAT - [0:0]
{{:CNI-DN-CHAIN - [0:0]}}
-A POSTROUTING -j FIRST
{{!-A POSTROUTING -s ADDRESS/32 -m comment --comment "name: \"podman\" id: \"ID\"" -j ACCEPT}}
-A POSTROUTING -j LAST
{{-A CNI-DNAT -p tcp -m multiport --dports PORT,80 -j CNI-DN-CHAIN}}
-A CNI-DNAT -j END
{{-A CNI-DN-CHAIN -s 10.88.0.0/16 -p tcp -m tcp --dport PORT -j SETMARK
-A CNI-DN-CHAIN -p tcp -m tcp --dport PORT -j DNAT --to-destination ADDRESS:22}}
COMMIT
`
)

// written is a template with containers: what is in {{ }} is there for each, the
// last one first behind {{!.
func written(t *testing.T, template string, all []container) *saved {
	t.Helper()
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(template, "{{")
		b.WriteString(before)
		if !found {
			break
		}
		each, after, _ := strings.Cut(rest, "}}\n")
		each, last := strings.CutPrefix(each, "!")
		for i := range all {
			one := &all[i]
			if last {
				one = &all[len(all)-1-i]
			}
			b.WriteString(strings.NewReplacer("ADDRESS", one.address.String(), "PORT", words.FindString(one.text()), "ID", one.id,
				"CHAIN", one.id[:12]).Replace(each) + "\n")
		}
		template = after
	}
	s, err := parseSaved(b.String())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// text is the container's port.
func (c *container) text() string {
	return netip.AddrPortFrom(c.address, c.ports[0]).String()[len(c.address.String())+1:]
}

func containers(n int) (all []container) {
	for i := range n {
		all = append(all, imagined(strings.Repeat("x", i+1), netip.AddrFrom4([4]byte{172, 17, 0, byte(2 + i)}), []uint16{uint16(22000 + i)}))
	}
	return all
}

func TestRulesAreMultiplied(t *testing.T) {
	t.Parallel()
	for name, template := range map[string]string{"appended": appendedRules, "inserted, with chains": insertedRules} {
		all := containers(6)
		var saves [3]*saved
		for i := range saves {
			saves[i] = written(t, template, all[:i+1])
		}
		found, err := learn(saves, &all[1], &all[2])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		further := containers(6)[1:]
		for i := range further { // a chain of a container that was not made has a name of its own
			further[i].chains = map[string]string{"nat CNI-DN-": "CNI-DN-" + further[i].id[:12]}
		}
		if diff := cmp.Diff(sortedChains(written(t, template, all)), sortedChains(found.with(further))); diff != "" {
			t.Errorf("%s (-program +multiplied):\n%s", name, diff)
		}
	}
}

// sortedChains is a ruleset, whatever the order of its chains.
func sortedChains(s *saved) map[string][]string {
	all := make(map[string][]string)
	for _, table := range s.tables {
		for _, chain := range table.chains {
			all[table.name+" "+chain.name] = chain.rules
		}
	}
	return all
}

func TestRulesOfNoShapeAreRefused(t *testing.T) {
	t.Parallel()
	all := containers(3)
	good := func() (saves [3]*saved) {
		for i := range saves {
			saves[i] = written(t, appendedRules, all[:i+1])
		}
		return saves
	}
	for name, spoil := range map[string]func(saves *[3]*saved){
		"another rule of the third": func(s *[3]*saved) {
			rules := s[2].table("nat").chain("DOCKER").rules
			rules[len(rules)-1] = strings.Replace(rules[len(rules)-1], ":22", ":23", 1)
		},
		"a rule that is gone": func(s *[3]*saved) {
			chain := s[2].table("nat").chain("DOCKER")
			chain.rules = append(chain.rules[1:], "-A DOCKER -j MORE")
		},
		"nothing for the third": func(s *[3]*saved) { s[2] = s[1] },
		"no rules at all":       func(s *[3]*saved) { s[1], s[2] = s[0], s[0] },
		"another place": func(s *[3]*saved) {
			for i, rules := range map[int][]string{0: {"a", "b"}, 1: {"a", "-A DOCKER 172.17.0.3", "b"}, 2: {"a", "-A DOCKER 172.17.0.3", "b", "-A DOCKER 172.17.0.4"}} {
				s[i].table("filter").chain("DOCKER").rules = rules
			}
		},
		"a chain without a hash": func(s *[3]*saved) {
			s[2].table("nat").chains = append(s[2].table("nat").chains, &savedChain{name: "MORE", policy: "-"})
		},
	} {
		saves := good()
		spoil(&saves)
		if _, err := learn(saves, &all[1], &all[2]); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
