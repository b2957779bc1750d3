package containerd

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/runtime"
)

// slowLeases are the leases of a containerd that does not answer at once calls
// about the one that is called slow.
type slowLeases struct {
	leases.Manager

	mu      sync.Mutex
	there   map[string]leases.Lease
	reached chan struct{} // gets something when such a call waits
	answer  chan struct{} // what it waits for; closed: nothing waits
}

func (l *slowLeases) wait(id string) {
	if id != "slow" {
		return
	}
	select {
	case l.reached <- struct{}{}:
		<-l.answer
	case <-l.answer:
	}
}

func (l *slowLeases) Create(_ context.Context, opts ...leases.Opt) (lease leases.Lease, err error) {
	for _, opt := range opts {
		if err := opt(&lease); err != nil {
			return lease, err
		}
	}
	l.mu.Lock()
	_, exists := l.there[lease.ID]
	l.there[lease.ID] = lease
	l.mu.Unlock()
	l.wait(lease.ID)
	if exists {
		err = errdefs.ErrAlreadyExists
	}
	return lease, err
}

func (l *slowLeases) Delete(_ context.Context, lease leases.Lease, _ ...leases.DeleteOpt) error {
	l.wait(lease.ID)
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.there, lease.ID)
	return nil
}

func (l *slowLeases) List(context.Context, ...string) (all []leases.Lease, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, lease := range l.there {
		all = append(all, lease)
	}
	return all, nil
}

func leaseEngine(t *testing.T) (*Engine, *slowLeases) {
	t.Helper()
	service := &slowLeases{there: make(map[string]leases.Lease), reached: make(chan struct{}), answer: make(chan struct{})}
	c, err := client.New("", client.WithServices(client.WithLeasesService(service)))
	if err != nil {
		t.Fatal(err)
	}
	return &Engine{client: c, token: "engine", leases: make(map[string]int), cfg: Config{Namespace: "test", Log: slog.New(slog.DiscardHandler)}}, service
}

// Of those who share a lease the last one gives it back, also when they end at the
// same moment.
func TestSharedLeaseIsGivenBack(t *testing.T) {
	t.Parallel()
	e, service := leaseEngine(t)
	for range 500 {
		var releases []func(*error)
		for range 3 {
			_, release, err := e.takeLease(t.Context(), "shared", "image")
			if err != nil {
				t.Fatal(err)
			}
			releases = append(releases, release)
		}
		var work sync.WaitGroup
		for _, release := range releases {
			work.Go(func() { var well error; release(&well) })
		}
		work.Wait()
		if left, _ := service.List(t.Context()); len(left) > 0 || e.holders("shared") != 0 {
			t.Fatalf("left %v, %d holders", left, e.holders("shared"))
		}
	}
}

// While containerd takes its time with one lease others are taken and given back,
// and Parts goes on; who waits for that one stops with its context.
func TestLeasesDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	e, service := leaseEngine(t)
	var work sync.WaitGroup
	defer work.Wait()
	defer close(service.answer)
	var release func(*error)
	taken := make(chan error, 1)
	work.Go(func() {
		var err error
		_, release, err = e.takeLease(t.Context(), "slow", "image")
		taken <- err
	})
	<-service.reached
	none := func(when string) {
		t.Helper()
		parts := make(chan []runtime.Part, 1)
		work.Go(func() {
			all, err := e.leaseParts(t.Context())
			if err != nil {
				t.Error(err)
			}
			parts <- all
		})
		select {
		case all := <-parts:
			if len(all) > 0 {
				t.Errorf("%s: left behind: %+v", when, all)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: Parts waits", when)
		}
	}
	others := func(when string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, _, err := e.takeLease(ctx, "slow", "image"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: the same lease: %v", when, err)
		}
		if err := e.removeLease(ctx, "slow"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: its removal: %v", when, err)
		}
		done := make(chan error, 1)
		work.Go(func() {
			_, release, err := e.takeLease(t.Context(), "quick", "")
			if err == nil {
				release(new(error))
			}
			done <- err
		})
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("%s: another lease: %v", when, err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: another lease waits", when)
		}
		none(when)
	}
	others("while it is made")
	service.answer <- struct{}{}
	if err := <-taken; err != nil {
		t.Fatal(err)
	}
	work.Go(func() { release(new(error)) })
	<-service.reached
	others("while it is removed")
}

// A lease that is taken while it is given back is there afterwards.
func TestLeaseThatIsTakenOver(t *testing.T) {
	t.Parallel()
	e, service := leaseEngine(t)
	close(service.answer)
	_, first, err := e.takeLease(t.Context(), "pull", "image")
	if err != nil {
		t.Fatal(err)
	}
	_, second, err := e.takeLease(t.Context(), "pull", "image")
	if err != nil {
		t.Fatal(err)
	}
	first(new(error))
	if all, _ := service.List(t.Context()); len(all) != 1 {
		t.Errorf("one of two has given it back: %v", all)
	}
	second(new(error))
	if all, _ := service.List(t.Context()); len(all) != 0 || e.holders("pull") != 0 {
		t.Errorf("both have: %v", all)
	}
}
