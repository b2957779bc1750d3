package keylock_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/remotegpu/remotegpu/internal/keylock"
)

func TestOneHolderPerKey(t *testing.T) {
	var locks keylock.Map[string]
	counts := map[string]*int{"a": new(int), "b": new(int)}
	var group sync.WaitGroup
	for key, count := range counts {
		for range 100 {
			group.Go(func() {
				unlock, err := locks.Lock(t.Context(), key)
				if err != nil {
					t.Error(err)
					return
				}
				defer unlock()
				*count++ // the race detector sees two holders
			})
		}
	}
	group.Wait()
	for key, count := range counts {
		if *count != 100 {
			t.Errorf("%s was held %d times", key, *count)
		}
	}
}

func TestWaitEndsWithTheContext(t *testing.T) {
	var locks keylock.Map[string]
	unlock, err := locks.Lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	if _, err := locks.Lock(ctx, "a"); !errors.Is(err, gone) {
		t.Errorf("got %v, want the context's cause", err)
	}
	unlock()
	unlock() // releasing twice does nothing
	again, err := locks.Lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestTryDoesNotWait(t *testing.T) {
	var locks keylock.Map[string]
	unlock, locked := locks.TryLock("a")
	if !locked {
		t.Fatal("nobody had it")
	}
	if _, locked := locks.TryLock("a"); locked {
		t.Error("it has two holders")
	}
	other, locked := locks.TryLock("b")
	if !locked {
		t.Error("it is another key")
	}
	other()
	unlock()
	again, err := locks.Lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	again()
}
