package tick

import (
	"testing"
	"time"
)

func TestUntil(t *testing.T) {
	t.Parallel()
	at := func(seconds, nanoseconds int64) time.Time { return time.Unix(seconds, nanoseconds) }
	for _, c := range []struct {
		now    time.Time
		period time.Duration
		want   time.Duration
	}{
		{at(100, 0), 4 * time.Second, 4 * time.Second},
		{at(101, 500), 4 * time.Second, 3*time.Second - 500},
		{at(103, 999_999_999), 2 * time.Second, 1},
		{at(103, 999_999_999), 4 * time.Second, 1},
		{at(100, 7), 0, 1},
		{at(100, 7), -time.Second, 1},
	} {
		if got := until(c.now, c.period); got != c.want {
			t.Errorf("at %v each %v: %v, want %v", c.now.UnixNano(), c.period, got, c.want)
		}
	}
	if got := Until(time.Hour); got <= 0 || got > time.Hour {
		t.Errorf("each hour: %v", got)
	}
}
