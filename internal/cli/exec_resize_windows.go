package cli

import (
	"context"
	"time"
)

// sizeChanges tells when the terminal's size may have changed: Windows has no
// signal for it, so it is looked at twice a second.
func sizeChanges(ctx context.Context) <-chan time.Time {
	ticker := time.NewTicker(500 * time.Millisecond)
	context.AfterFunc(ctx, ticker.Stop)
	return ticker.C
}
