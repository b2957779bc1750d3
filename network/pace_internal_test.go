package network

import (
	"testing"
	"time"
)

// White-box: the rate is not visible from outside without waiting for it.
func TestPace(t *testing.T) {
	p := pace{burst: 3, interval: time.Second}
	now := time.Unix(1000, 0)
	for range 3 {
		if wait := p.wait(now); wait != 0 {
			t.Errorf("within the burst: %s", wait)
		}
	}
	for want := time.Second; want <= 3*time.Second; want += time.Second {
		if wait := p.wait(now); wait != want {
			t.Errorf("after the burst: %s, want %s", wait, want)
		}
	}
	if wait := p.wait(now.Add(4 * time.Second)); wait != 0 {
		t.Errorf("after a while: %s", wait)
	}
	later := now.Add(time.Hour)
	for range 3 {
		if wait := p.wait(later); wait != 0 {
			t.Errorf("the burst is there again: %s", wait)
		}
	}
	if wait := p.wait(later); wait != time.Second {
		t.Errorf("it is not larger than before: %s", wait)
	}
}
