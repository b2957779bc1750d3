package runtime

import (
	"net/netip"
	"testing"
	"time"
)

// A clock that is set back holds up no restart, no health check and no end of a
// start period; what ends at a time that somebody set ends then.
func TestClockSetBack(t *testing.T) {
	now := time.Now()
	for _, test := range []struct {
		longest, ahead time.Duration
		due            bool
	}{
		{restartMax, 0, true},
		{restartMax, restartMax, false},
		{restartMax, time.Hour, true},
		{0, time.Hour, false},
	} {
		a := newAgenda(test.longest)
		a.set(idA, now.Add(test.ahead))
		if due, _ := a.take(now); (len(due) == 1) != test.due {
			t.Errorf("longest %v, %v ahead: due is %q", test.longest, test.ahead, due)
		}
		env := &Environment{RestartAt: now.Add(test.ahead)}
		if test.longest != 0 && restartIsDue(env, now) != test.due {
			t.Errorf("a restart %v ahead: due is not %v", test.ahead, test.due)
		}
	}

	h := newHealthChecks(nil)
	env := &Environment{ID: idA, State: Running, StartedAt: now.Add(time.Hour).Round(0), Address: netip.MustParseAddr("10.0.0.2")}
	env.Spec.HealthCheck = &HealthCheck{Interval: time.Second, StartPeriod: time.Minute, Retries: 1}
	h.follow(env)
	m := h.byID[idA]
	if health, _ := h.judge(m, false, "", time.Now()); health != HealthStarting {
		t.Errorf("within its start period it is %q", health)
	}
	if health, _ := h.judge(m, false, "", time.Now().Add(time.Minute)); health != Unhealthy {
		t.Errorf("after its start period it is %q", health)
	}
}
