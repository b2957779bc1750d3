package cli

import (
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
)

// A stream that has nothing to say is not taken for one that was never made:
// each loss has all of its time.
func TestEachLossHasItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := connect.NewError(connect.CodeUnavailable, "gone")
		notes := 0
		r := reconnect{lostFor: lostFor, note: func(string) { notes++ }}
		for loss := range 3 {
			for range 3 {
				if err := r.wait(t.Context(), gone); err != nil {
					t.Fatalf("loss %d: %v", loss, err)
				}
			}
			time.Sleep(time.Hour) // made again, and silent
		}
		if notes != 3 {
			t.Errorf("%d of 3 losses were told", notes)
		}
		begun := time.Now()
		for r.wait(t.Context(), gone) == nil {
			if time.Since(begun) > time.Hour {
				t.Fatal("it is tried forever")
			}
		}
		if waited := time.Since(begun); waited < lostFor || waited > lostFor+3*time.Second {
			t.Errorf("given up after %s", waited)
		}
	})
}
