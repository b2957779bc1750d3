// Package tick has whatever looks at something now and then do so at the same
// moments. Waking an idle process costs more than most looks do, so five looks
// at one moment are cheaper than one look at five moments. It has the wait for
// anything else, too.
package tick

import (
	"context"
	"time"
)

// Until is the time from now to the next moment that is a multiple of period
// since the epoch; it is never 0. Periods of which one is a multiple of the
// other share their moments. A period that is not above 0 counts as a
// nanosecond.
func Until(period time.Duration) time.Duration {
	return until(time.Now(), period)
}

func until(now time.Time, period time.Duration) time.Duration {
	period = max(period, 1)
	return period - time.Duration(now.UnixNano()%int64(period))
}

// Wait blocks until the next moment that is a multiple of period, and is false
// when ctx ends first.
func Wait(ctx context.Context, period time.Duration) bool { return Pause(ctx, Until(period)) }

// Pause blocks for a while, and is false when ctx ends first.
func Pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
