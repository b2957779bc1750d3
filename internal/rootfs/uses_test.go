package rootfs_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/rootfs"
)

func TestUses(t *testing.T) {
	var uses rootfs.Uses
	ctx, use, err := uses.Enter(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := uses.Enter(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	changed := make(chan func())
	go func() {
		done, err := uses.Change(t.Context(), "a")
		if err != nil {
			t.Error(err)
		}
		changed <- done
	}()
	<-ctx.Done()
	wantReason(t, "the cause", context.Cause(ctx), problem.CopyInterrupted)
	select {
	case <-changed:
		t.Fatal("the change did not wait")
	case <-time.After(10 * time.Millisecond):
	}
	use.Leave()
	use.Leave()
	done := <-changed
	_, _, err = uses.Enter(t.Context(), "a")
	wantReason(t, "entering meanwhile", err, problem.CopyInterrupted)
	done()
	done()
	live, use, err := uses.Enter(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	still, second, err := uses.Enter(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	use.Live()
	go func() { <-live.Done(); use.Leave() }()
	if err := uses.EndLive(t.Context(), "a"); err != nil || live.Err() == nil || still.Err() != nil {
		t.Errorf("end of the live ones: %v, %v, %v", err, live.Err(), still.Err())
	}
	// Whoever cannot wait any longer leaves nothing changed.
	gone, cancel := context.WithCancelCause(t.Context())
	left := errors.New("left")
	cancel(left)
	if _, err := uses.Change(gone, "a"); !errors.Is(err, left) {
		t.Errorf("a change without time: %v", err)
	}
	second.Leave()
	if _, again, err := uses.Enter(t.Context(), "a"); err != nil {
		t.Errorf("entering again: %v", err)
	} else {
		again.Leave()
	}
	other.Leave()
}
