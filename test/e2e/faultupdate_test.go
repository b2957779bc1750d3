package e2e_test

import (
	"net/http"
	"strings"
	"testing"
)

const (
	plainUpdate = `{"request_id":"","wait":"60s","environment":"one","update_mask":"spec.resources.memoryBytes,spec.env,spec.ports,spec.network",` +
		`"spec":{"ports":[{"service_type":"SERVICE_TYPE_CUSTOM","internal_port":8080}]}}`
	fullUpdate = `{"request_id":%s,"wait":"60s","environment":"one","spec":{"resources":{"memory_bytes":"134217728"},"env":{"N":"1"},` +
		`"network":{"egress":"EGRESS_MODE_NONE","ingress_bits_per_second":"10000000"},` +
		`"ports":[{"service_type":"SERVICE_TYPE_CUSTOM","internal_port":8080},{"service_type":"SERVICE_TYPE_CUSTOM","internal_port":8081}]}}`
)

// notUpdated is what an update starts from.
func notUpdated(tb testing.TB, f *faultNode) {
	tb.Helper()
	f.must(tb, "EnvironmentService/UpdateEnvironment", plainUpdate)
}

// updatedWhole fails the test when an update was done in part, or when store
// and kernel do not agree.
func updatedWhole(tb testing.TB, f *faultNode) {
	tb.Helper()
	var got struct {
		Environment struct {
			changed
			ID      string `json:"id"`
			Address string `json:"address"`
			Ports   []struct {
				External int `json:"externalPort"`
			} `json:"portMappings"`
		}
	}
	if status, text, err := f.ask("EnvironmentService/GetEnvironment", `{"environment":"one"}`, &got); err != nil || status != http.StatusOK {
		tb.Fatalf("get one: %d %s %v", status, text, err)
	}
	env := &got.Environment
	ports := 1
	if got.Environment.Spec.Env["N"] != "" {
		ports = 2
	}
	limit := f.memoryLimit(tb, env.ID)
	if limit == "max" || len(limit) > 15 { // none
		limit = ""
	}
	if memory := got.Environment.Spec.Resources.Memory; memory != limit || (memory != "") != (ports == 2) || len(env.Ports) != ports {
		tb.Errorf("updated in part: %+v, ports %+v, the kernel has %q", got.Environment.changed, env.Ports, limit)
	}
	closed, limited := f.Sh(tb, "iptables-save -t filter | grep -c "+env.ID+":egress=none || true") == "1", f.Sh(tb, "tc qdisc show | grep -c 'tbf.*10Mbit' || true") == "1"
	if closed != (ports == 2) || limited != closed {
		tb.Errorf("updated in part: closed %v, limited %v, %d ports", closed, limited, ports)
	}
	rules := f.Sh(tb, "iptables-save -t nat")
	for _, m := range env.Ports {
		if !strings.Contains(rules, env.Address+":") {
			tb.Errorf("port %d is not published:\n%s", m.External, rules)
		}
	}
}
