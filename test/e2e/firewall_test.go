package e2e_test

import (
	"encoding/json"
	"strings"
	"testing"
)

// What somebody flushes is back before anybody notices, and it is told who it
// was; what is declared can be looked at.
func TestFirewallHeals(t *testing.T) {
	n := Start(t, usual, "")
	n.Must(t, "env", "create", "one", "--image", n.Image, "-p", "15000:8080", "--", "banner", ":8080", "one")
	answers := func() bool {
		answer, err := n.Ask(t, 15000)
		return err == nil && strings.HasPrefix(answer, "one ")
	}
	Eventually(t, "the port to answer", answers)
	if rules := n.Must(t, "node", "firewall", "show"); !strings.Contains(rules, "--dport 15000") {
		t.Errorf("the rules that are declared: %s", rules)
	}
	n.Sh(t, "iptables -t nat -F; iptables -F")
	type state struct {
		Node struct {
			Watch         string `json:"watch"`
			Repairs       string `json:"repairs"`
			LatestRepairs []struct {
				What, By []string
			} `json:"latestRepairs"`
		} `json:"firewall"`
	}
	var told state
	Eventually(t, "the repair to be told", func() bool {
		told = state{}
		if err := json.Unmarshal([]byte(n.Must(t, "node", "info", "-o", "json")), &told); err != nil {
			t.Fatal(err)
		}
		return len(told.Node.LatestRepairs) > 0 && n.Must(t, "node", "firewall", "diff") == "all is as declared\n"
	})
	if by := told.Node.LatestRepairs[0].By; told.Node.Watch == "events" && (len(by) == 0 || !strings.HasPrefix(by[0], "iptables[")) {
		t.Errorf("who did it: %+v", told.Node)
	}
	if !answers() {
		t.Error("the port does not answer after the repair")
	}
}
