package containerd

import (
	"bytes"
	"context"
	"sync"
	"time"
)

// drainTime is how long more output is awaited of a command that has ended: what it
// has left running in the background may hold its pipes open forever.
const drainTime = 2 * time.Second

// writeTime is how long it is awaited at most where that writes and writes, and
// leftLimit what a command that has ended can have left in its pipes, in bytes,
// and more.
const (
	writeTime = 5 * drainTime
	leftLimit = 4 << 20
)

// killedDrainTime is how long more what a command has written before it was
// killed may be on its way.
const killedDrainTime = 500 * time.Millisecond

// quiet waits until done is closed, ctx ends, or drainTime has passed in which
// moved told neither of more bytes nor of something at work. What runs on in the
// background may write and write: that is waited for no longer than writeTime, in
// which a slow caller's time counts only once there is more than a command that
// has ended can have left. It says whether done was closed.
func quiet(ctx context.Context, done <-chan struct{}, moved func() (count int64, busy bool)) bool {
	const interval = drainTime / 10
	tick := time.NewTicker(interval)
	defer tick.Stop()
	first, _ := moved()
	seen := first
	for idle, counted := 0, time.Duration(0); idle < 10 && counted < writeTime; {
		select {
		case <-done:
			return true
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
		now, busy := moved()
		if now != seen || busy {
			idle, seen = 0, now
		} else {
			idle++
		}
		if !busy || now-first > leftLimit {
			counted += interval
		}
	}
	return false
}

// sink keeps the first bytes of an output and drops the rest.
type sink struct {
	limit     int
	mu        sync.Mutex
	data      []byte
	truncated bool
	count     int64 // of bytes
}

// Write implements io.Writer.
func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count += int64(len(p))
	keep := p[:min(len(p), s.limit-len(s.data))]
	s.data = append(s.data, keep...)
	s.truncated = s.truncated || len(keep) < len(p)
	return len(p), nil
}

func (s *sink) moved() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

func (s *sink) take() ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.data), s.truncated
}
