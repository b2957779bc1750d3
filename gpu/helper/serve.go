package helper

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// Serve answers the questions that come from in, one a line, until it ends.
// open makes the driver out of the settings, which are the first line. A call
// that hangs does not keep Serve from returning: the process is to end then.
func Serve(ctx context.Context, in io.Reader, out io.Writer, open func(settings json.RawMessage) (gpu.Driver, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lines := bufio.NewReader(in)
	settings, err := lines.ReadBytes('\n')
	if errors.Is(err, io.EOF) && len(settings) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	driver, err := open(settings)
	if err != nil {
		return err
	}
	s := server{driver: driver, out: out}
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read question: %w", err)
		}
		var q question
		if err := json.Unmarshal(line, &q); err != nil {
			return fmt.Errorf("read question: %w", err)
		}
		go s.answer(ctx, q)
	}
}

type server struct {
	driver gpu.Driver
	mu     sync.Mutex // of out
	out    io.Writer
}

func (s *server) answer(ctx context.Context, q question) {
	result, err := s.call(ctx, q)
	a := answer{ID: q.ID}
	if err == nil && result != nil {
		a.Result, err = json.Marshal(result)
	}
	if err != nil {
		a.Failures = failures(err)
		var stale interface{ Stale() bool }
		a.Stale = errors.As(err, &stale) && stale.Stale()
	}
	s.send(a)
}

func (s *server) send(a answer) {
	line, err := json.Marshal(a)
	if err != nil {
		line, _ = json.Marshal(answer{ID: a.ID, Failures: failures(err)}) //nolint:errchkjson // strings alone
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = s.out.Write(append(line, '\n')) // nobody listens any more: in has ended, too
}

func (s *server) call(ctx context.Context, q question) (any, error) {
	switch q.Method {
	case methodProbe:
		return s.driver.Probe(ctx)
	case methodEdits:
		if q.Edits == nil {
			return nil, problem.New(problem.Internal, "a question for edits without a request")
		}
		return s.driver.Edits(ctx, *q.Edits)
	case methodUsage:
		return s.driver.Usage(ctx)
	case methodWatch:
		return nil, s.driver.Watch(ctx, q.Only, func(event gpu.Event) { s.send(answer{ID: q.ID, Event: &event}) })
	case methodCreateMIG:
		return s.driver.CreateMIG(ctx, q.GPU, q.Profile, q.Placement)
	case methodDestroyMIG:
		return nil, s.driver.DestroyMIG(ctx, q.MIG)
	case methodMIGMode:
		return s.driver.SetMIGMode(ctx, q.GPU, q.On)
	case methodExclusive:
		return nil, s.driver.SetExclusiveProcess(ctx, q.GPU, q.On)
	case methodLimit:
		return nil, s.driver.SetMemoryLimit(ctx, q.GPU, q.Cgroup, q.Bytes)
	case methodMemory:
		return s.driver.MemoryUsed(ctx, q.GPU, q.Cgroups)
	default:
		return nil, problem.New(problem.Internal, "no method %q", q.Method)
	}
}
