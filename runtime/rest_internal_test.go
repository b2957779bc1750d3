package runtime

import (
	"context"
	"errors"
	"testing"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// passes counts the ticks of the timer that have a pass, of n, each of which finds
// the same.
func (r *rest) passes(n int, seq uint64, found *calm) (passes int) {
	for range n {
		if r.spare(seq) == nil {
			passes++
			r.passed(seq, found)
		}
	}
	return passes
}

func TestRest(t *testing.T) {
	var r rest
	well := &calm{inhabited: true, alive: []string{"a"}}
	if got := r.passes(10, 0, nil); got != 10 {
		t.Fatalf("a node that has something to do: %d passes in ten ticks, want all", got)
	}
	if got := r.passes(2, 0, well); got != 2 {
		t.Fatalf("once all is well: %d passes in two ticks, want both", got)
	}
	if got := r.passes(4*restTicks, 0, well); got != 4 {
		t.Fatalf("a calm node: %d passes in %d ticks, want one in %d", got, 4*restTicks, restTicks)
	}
	if got := r.passes(3, 1, well); got != 2 {
		t.Fatalf("an environment has changed: %d passes in three ticks, want two", got)
	}
	if got := r.spare(1); got != well {
		t.Fatalf("calm with %+v, want %+v", got, well)
	}
	for _, step := range []struct {
		what string
		do   func()
	}{
		{"something failed since", r.disturb},
		{"only one pass came after that", func() { r.passed(1, well) }},
		{"the one before found something", func() { r.passed(1, well); r.passed(1, nil) }},
		{"an environment has changed since", func() { r.passed(1, well); r.passed(2, well) }},
	} {
		if step.do(); r.spare(1) != nil || r.spare(2) != nil {
			t.Fatalf("no pass though %s", step.what)
		}
	}
}

func TestNothingToDo(t *testing.T) {
	for _, tt := range []struct {
		name     string
		o        *observed
		findings []Finding
		want     bool
	}{
		{"nothing there", &observed{}, nil, true},
		{"somebody else's things", &observed{}, []Finding{{Kind: FoundSnapshot}}, true},
		{"a leftover", &observed{}, []Finding{{Kind: FoundSnapshot}, {Kind: FoundLog, Ours: true}}, false},
		{"an environment", &observed{environments: []*Environment{{}}}, nil, true},
		{"one that somebody works on", &observed{environments: []*Environment{{}, {Operation: "a"}}}, nil, false},
		{"one that is created", &observed{creating: map[string]bool{"a": true}}, nil, false},
	} {
		if got := tt.o.nothingToDo(tt.findings); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.name, got, tt.want)
		}
	}
}

// booked is a store that knows of GPUs alone.
type booked struct {
	Store
	books gpu.Books
	err   error
}

func (b booked) GPUBooks(context.Context) (gpu.Books, error) { return b.books, b.err }

func TestNothingPending(t *testing.T) {
	stays, goes := gpu.Planned{GPU: "GPU-1"}, gpu.Planned{GPU: "GPU-1", Remove: true}
	for _, tt := range []struct {
		name      string
		store     booked
		condition error
		want      bool
	}{
		{"nothing", booked{}, nil, true},
		{"an administrator's instance", booked{books: gpu.Books{Planned: []gpu.Planned{stays}}}, nil, true},
		{"an instance to remove", booked{books: gpu.Books{Planned: []gpu.Planned{stays, goes}}}, nil, false},
		{"a condition", booked{}, errors.New("something is wrong"), false},
		{"a store that fails", booked{err: errors.New("disk")}, nil, false},
	} {
		m := &Manager{cfg: Config{Store: tt.store}, conditions: make(map[problem.Reason]Condition)}
		m.setCondition(problem.FirewallFailed, tt.condition)
		if got := m.nothingPending(t.Context()); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.name, got, tt.want)
		}
	}
}
