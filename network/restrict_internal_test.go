package network

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/network/firewall"
)

// stubFirewall keeps what it was told, or fails.
type stubFirewall struct {
	Firewall
	mu       sync.Mutex
	failing  bool
	declared firewall.Desired
}

func (s *stubFirewall) Set(_ context.Context, desired firewall.Desired) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failing {
		return errors.New("refused")
	}
	s.declared = desired
	return nil
}

func (s *stubFirewall) Restore(ctx context.Context, desired firewall.Desired) ([]string, error) {
	return nil, s.Set(ctx, desired)
}

func (s *stubFirewall) fail(failing bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failing = failing
}

func (s *stubFirewall) closed() []netip.Prefix {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.declared.Surroundings.Closed
}

// TestSurroundingsAreInForceWhenApplied: a look at what is around environments
// is done with when it was applied, not when it was seen, and an older look
// never overtakes a younger one. White-box: the kernel cannot be made to fail
// at that moment.
func TestSurroundingsAreInForceWhenApplied(t *testing.T) {
	t.Parallel()
	lan := netip.MustParsePrefix("203.0.113.0/24")
	rules := &stubFirewall{}
	var around firewall.Surroundings
	var background sync.WaitGroup
	defer background.Wait()
	look := func() firewall.Surroundings { return around }
	p := &publisher{
		firewall: rules, around: func(context.Context) (firewall.Surroundings, error) { return look(), nil },
		log: slog.New(slog.DiscardHandler), current: make(map[string]publication), background: &background, failed: func() {},
	}
	if _, _, err := p.restore(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	around.Closed = []netip.Prefix{lan}
	rules.fail(true)
	if _, err := p.surround(t.Context()); err == nil {
		t.Fatal("what failed is said to have gone well")
	}
	rules.fail(false)
	if changed, err := p.surround(t.Context()); err != nil || !changed || len(rules.closed()) != 1 {
		t.Errorf("after a failure: changed %v, error %v, closed %v", changed, err, rules.closed())
	}
	if changed, err := p.surround(t.Context()); err != nil || changed {
		t.Errorf("nothing is new: changed %v, error %v", changed, err)
	}
	// One looks before the host gets another network, and is slow; another one
	// looks after it.
	older := around
	around.Closed = []netip.Prefix{lan, netip.MustParsePrefix("198.51.100.0/24")}
	younger := around
	slow, proceed := make(chan struct{}), make(chan struct{})
	var first sync.Once
	look = func() firewall.Surroundings {
		seen := younger
		first.Do(func() {
			seen = older
			close(slow)
			<-proceed
		})
		return seen
	}
	var both sync.WaitGroup
	surround := func() {
		if _, err := p.surround(t.Context()); err != nil {
			t.Error(err)
		}
	}
	both.Go(surround)
	<-slow
	both.Go(surround)
	time.Sleep(10 * time.Millisecond) // it would be done by then, were it let
	close(proceed)
	both.Wait()
	if len(rules.closed()) != 2 {
		t.Errorf("closed is %v in the end", rules.closed())
	}
}
