package runtime

import (
	"context"
	"errors"
	"testing"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// passes counts the ticks of the timer that have a pass, of n.
func (r *rest) passes(n int, seq uint64, nothing bool) (passes int) {
	for range n {
		if !r.spare(seq) {
			passes++
			r.passed(seq, nothing)
		}
	}
	return passes
}

func TestRest(t *testing.T) {
	var r rest
	if got := r.passes(10, 0, false); got != 10 {
		t.Fatalf("a node that has something to do: %d passes in ten ticks, want all", got)
	}
	r.passed(0, true)
	if got := r.passes(4*restTicks, 0, true); got != 4 {
		t.Fatalf("a node at rest: %d passes in %d ticks, want one in %d", got, 4*restTicks, restTicks)
	}
	if r.spare(0); r.spare(1) {
		t.Fatal("no pass though an environment has changed since")
	}
	r.passed(1, false)
	if r.spare(1) {
		t.Fatal("no pass though the one before found something")
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
		{"an environment", &observed{environments: []*Environment{{}}}, nil, false},
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
