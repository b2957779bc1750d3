package netbench

import "testing"

// White-box: which mapping is measured as the worst decides what the target says.

func TestRulesPassedOnTheWayToAPort(t *testing.T) {
	t.Parallel()
	rules, err := parseSaved(`*nat
:RGPU-DNAT - [0:0]
:RGPU-TCP-G8192 - [0:0]
:RGPU-TCP-G20480 - [0:0]
:RGPU-UDP-G20480 - [0:0]
-A RGPU-DNAT -p tcp -m tcp --dport 8192:12287 -j RGPU-TCP-G8192
-A RGPU-DNAT -p tcp -m tcp --dport 20480:24575 -j RGPU-TCP-G20480
-A RGPU-DNAT -p udp -m udp --dport 20480:24575 -j RGPU-UDP-G20480
-A RGPU-TCP-G8192 -p tcp -m tcp --dport 9000 -j DNAT --to-destination 10.88.0.2:22
-A RGPU-TCP-G20480 -p tcp -m tcp --dport 22000 -j DNAT --to-destination 10.88.0.2:22
-A RGPU-TCP-G20480 -p tcp -m tcp --dport 22001 -j DNAT --to-destination 10.88.0.10:22
-A RGPU-UDP-G20480 -p udp -m udp --dport 22007 -j DNAT --to-destination 10.88.0.2:22
COMMIT
`)
	if err != nil {
		t.Fatal(err)
	}
	steps := portSteps(rules)
	for number, want := range map[int]int{9000: 2, 22000: 3, 22001: 4, 22007: 0, 7001: 0} {
		count, found := passed(steps, "RGPU-DNAT", number)
		if found != (want > 0) || found && count != want {
			t.Errorf("to %d a packet passes %d rules, %v, want %d", number, count, found, want)
		}
	}
}
