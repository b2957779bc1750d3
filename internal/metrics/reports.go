package metrics

import (
	"context"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/runtime"
)

// questionTime is how long a question goes on, so that an answer that takes
// longer than a scrape waits comes with the next one.
const questionTime = time.Minute

type report = runtime.GPUReport

// GPUs tells of GPUs; *runtime.Manager does. Their driver may hang.
type GPUs interface {
	ReportGPUs(ctx context.Context) runtime.GPUReport
}

// reports asks for reports, one at a time.
type reports struct {
	ask  func(ctx context.Context) report
	wait time.Duration

	mu     sync.Mutex
	asking chan struct{} // closed with the answer; nil: nothing is asked
	last   report
}

func newReports(ask func(ctx context.Context) report, patience time.Duration) *reports {
	if patience == 0 {
		patience = DefaultPatience
	}
	return &reports{ask: ask, wait: patience}
}

// get returns a report that was asked for now, or, where that takes too long, the
// last one there is and no.
func (r *reports) get(ctx context.Context) (last report, fresh bool) {
	r.mu.Lock()
	if r.asking == nil {
		r.asking = make(chan struct{})
		go r.question(ctx, r.asking)
	}
	asking := r.asking
	r.mu.Unlock()
	timer := time.NewTimer(r.wait)
	defer timer.Stop()
	select {
	case <-asking:
		fresh = true
	case <-timer.C:
	case <-ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last, fresh
}

func (r *reports) question(ctx context.Context, done chan<- struct{}) {
	ctx, cancel := context.WithTimeout(ctx, questionTime)
	defer cancel()
	answer := r.ask(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if answer.Err != nil && len(answer.GPUs) == 0 { // what there was is not gone
		answer.GPUs, answer.Holders, answer.Errors = r.last.GPUs, r.last.Holders, r.last.Errors
	}
	r.last, r.asking = answer, nil
	close(done)
}
