package e2e_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

const (
	addedPort = `,"service_type":"SERVICE_TYPE_CUSTOM","internal_port":8081,"allowed_sources":["198.51.100.0/24"]`
	mappingOf = `"id":"MAPPING"` // in a scenario's body: the mapping that before has chosen
)

// portedEnvironment is what faults of port mappings look at.
type portedEnvironment struct {
	Address string
	Spec    struct {
		Ports []struct {
			Internal int      `json:"internalPort"`
			Sources  []string `json:"allowedSources"`
		}
	}
	Ports []struct {
		ID       string `json:"id"`
		External int    `json:"externalPort"`
		Internal int    `json:"internalPort"`
		Sources  []string
	} `json:"portMappings"`
}

func ported(tb testing.TB, f *faultNode) *portedEnvironment {
	tb.Helper()
	var got struct{ Environment portedEnvironment }
	if status, text, err := f.ask("EnvironmentService/GetEnvironment", `{"environment":"one"}`, &got); err != nil || status != http.StatusOK {
		tb.Fatalf("get one: %d %s %v", status, text, err)
	}
	return &got.Environment
}

// chosenPort is a mapping to the port inside, which is open to everybody; it is
// made when there is none.
func chosenPort(internal int) func(testing.TB, *faultNode) {
	return func(tb testing.TB, f *faultNode) {
		tb.Helper()
		notUpdated(tb, f)
		if internal != 8080 {
			f.must(tb, "PortService/CreatePortMapping", fmt.Sprintf(`{"wait":"60s","environment":"one","service_type":"SERVICE_TYPE_CUSTOM","internal_port":%d}`, internal))
		}
		f.mapping = ""
		for _, m := range ported(tb, f).Ports {
			if m.Internal == internal {
				f.mapping = m.ID
			}
		}
		if f.mapping == "" {
			tb.Fatalf("nothing leads to port %d", internal)
		}
	}
}

// portsAre fails the test when spec, mappings and rules do not agree on which
// ports lead where: pairs of a port inside and who reaches it.
func portsAre(want ...string) func(testing.TB, *faultNode) {
	return func(tb testing.TB, f *faultNode) {
		tb.Helper()
		env := ported(tb, f)
		var asked, held []string
		for _, request := range env.Spec.Ports {
			asked = append(asked, strings.TrimSpace(fmt.Sprint(request.Internal, " ", strings.Join(request.Sources, ","))))
		}
		rules := f.Sh(tb, "iptables-save -t nat")
		for _, m := range env.Ports {
			sources := ""
			for rule := range strings.SplitSeq(rules, "\n") {
				if !strings.Contains(rule, fmt.Sprintf("--dport %d ", m.External)) || !strings.Contains(rule, fmt.Sprintf("%s:%d", env.Address, m.Internal)) {
					continue
				}
				if fields := strings.Fields(rule); fields[2] == "-s" && !strings.HasPrefix(fields[3], env.Address) {
					sources = " " + fields[3]
				}
			}
			if !strings.Contains(rules, fmt.Sprintf("%s:%d\n", env.Address, m.Internal)) {
				tb.Errorf("host port %d leads nowhere:\n%s", m.External, rules)
			}
			held = append(held, fmt.Sprint(m.Internal, sources))
		}
		if !slices.Equal(asked, want) || !slices.Equal(held, want) {
			tb.Errorf("asked for %q, held and published %q, want %q", asked, held, want)
		}
	}
}
