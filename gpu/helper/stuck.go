package helper

import (
	"slices"
	"sync"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// stuck are processes that were killed and have not ended: the driver keeps
// them. Each that followed would end up there, too.
type stuck struct {
	mu        sync.Mutex
	processes []*process
}

// kill ends a process, or keeps it until it does.
func (s *stuck) kill(p *process) {
	if p.kill() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.processes, p) {
		s.processes = append(s.processes, p)
	}
}

// check is GPU_UNAVAILABLE while there are any.
func (s *stuck) check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.processes = slices.DeleteFunc(s.processes, func(p *process) bool { return !p.running() })
	if len(s.processes) == 0 {
		return nil
	}
	return problem.New(problem.GPUUnavailable, "the GPU software hangs: process %d, which was killed, does not end", s.processes[0].cmd.Process.Pid).
		WithHint(hintHung)
}
