package runtime

import (
	"strconv"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/runtime/operation"
)

// spans measures the steps of an operation and keeps them in its result as
// "span.<step>" in microseconds, so that anybody can see where a create spends
// its time. Steps one after another are measured by end; those beside them by
// beside.
type spans struct {
	mu   sync.Mutex
	task *operation.Task
	last time.Time
}

func startSpans(task *operation.Task) *spans {
	return &spans{task: task, last: time.Now()}
}

func (s *spans) set(name string, took time.Duration) {
	s.task.SetResult("span."+name, strconv.FormatInt(took.Microseconds(), 10))
}

// end records the time since the step before.
func (s *spans) end(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.set(name, now.Sub(s.last))
	s.last = now
}

// beside starts a step that runs beside others and returns what ends it.
func (s *spans) beside(name string) func() {
	start := time.Now()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.set(name, time.Since(start))
	}
}
