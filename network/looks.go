package network

import (
	"context"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/internal/tick"
)

// stirs tells those who rest that something has happened.
type stirs struct {
	mu   sync.Mutex
	next chan struct{} // closed with the next; nil: nobody waits
}

// happened wakes whoever waits.
func (s *stirs) happened() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next != nil {
		close(s.next)
		s.next = nil
	}
}

// await is closed with what happens next.
func (s *stirs) await() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil {
		s.next = make(chan struct{})
	}
	return s.next
}

// Looks are those that somebody takes at the host, again and again, on behalf
// of environments. While there is none they are spared: to wake the node each few
// seconds costs more than all else that it does at rest.
type Looks struct {
	networks *Networks
	stirred  <-chan struct{} // since before the last look
}

// Looks begins to look. It is one caller's own.
func (n *Networks) Looks() *Looks { return &Looks{networks: n, stirred: n.stirs.await()} }

// Wait blocks until the next look is due; it is false when ctx ends first. While
// environments have networks one is due at each multiple of every. While none has,
// one is at the first of these moments after something has happened: an
// environment came, the kernel told of addresses or routes, or the host
// was brought in order (Restore).
func (l *Looks) Wait(ctx context.Context, every time.Duration) bool {
	if l.networks.resting() {
		return l.WaitStirred(ctx, every)
	}
	return l.soon(ctx, every)
}

// WaitStirred is Wait for a look at what the kernel tells of, addresses and
// routes: it rests while there are environments as well.
func (l *Looks) WaitStirred(ctx context.Context, every time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-l.stirred:
		return l.soon(ctx, every)
	}
}

// soon waits for the next multiple of every.
func (l *Looks) soon(ctx context.Context, every time.Duration) bool {
	if !tick.Wait(ctx, every) {
		return false
	}
	l.stirred = l.networks.stirs.await() // what happens during the look is for the next one
	return true
}

// resting tells whether no environment has a network.
func (n *Networks) resting() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.slots) == 0
}
