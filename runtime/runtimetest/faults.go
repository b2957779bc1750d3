// Package runtimetest holds the conformance suites of the runtime's seams and
// in-memory fakes that pass them. Fakes record their calls in Faults and fail
// the call a test names, before or after its work is done.
package runtimetest

import (
	"slices"
	"sync"
)

// When says at which point of a call a fault strikes.
type When int

// Before: nothing was done. After: all was done, and the caller is told that
// it failed all the same, as when a connection breaks while an answer is on
// its way.
const (
	Before When = iota
	After
)

// Faults records calls and fails chosen ones. One Faults may be shared by
// several fakes; a call's name is "Interface.Method", for example
// "Engine.Create". Its zero value is ready, a nil one records and fails
// nothing. It is safe for concurrent use.
type Faults struct {
	mu     sync.Mutex
	calls  []string
	counts map[string]int
	plans  []plan
	dead   error // what every call fails with
	hook   func(method string)
}

type plan struct {
	method string
	n      int
	when   When
	err    error
}

// FailCall fails the n-th call of method from now on (1 is the next one, 0
// every one) with err, before anything is done.
func (f *Faults) FailCall(method string, n int, err error) { f.Fail(method, n, Before, err) }

// Fail is FailCall with a choice of when.
func (f *Faults) Fail(method string, n int, when When, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n > 0 {
		n += f.counts[method]
	}
	f.plans = append(f.plans, plan{method: method, n: n, when: when, err: err})
}

// Kill fails every call from now on with err, before anything is done, until
// Kill(nil): whoever calls has died, and does nothing any more.
func (f *Faults) Kill(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = err
}

// Hook has f called at the begin of every call, outside of all locks: to block
// a call, or to do something at that moment. nil removes it.
func (f *Faults) Hook(hook func(method string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// Calls returns the names of all calls so far, in order.
func (f *Faults) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Count says how often method was called.
func (f *Faults) Count(method string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[method]
}

// Reset forgets plans, hook and calls.
func (f *Faults) Reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls, f.counts, f.plans, f.hook = nil, nil, nil, nil
}

// Do is a call of method whose work is work. Fakes of other packages use it.
func (f *Faults) Do(method string, work func() error) error {
	if f == nil {
		return work()
	}
	before, after := f.enter(method)
	if before != nil {
		return before
	}
	if err := work(); err != nil {
		return err
	}
	return after
}

func (f *Faults) enter(method string) (before, after error) {
	f.mu.Lock()
	if f.counts == nil {
		f.counts = make(map[string]int)
	}
	f.calls = append(f.calls, method)
	f.counts[method]++
	for _, p := range f.plans {
		if p.method != method || (p.n != 0 && p.n != f.counts[method]) {
			continue
		}
		if p.when == Before && before == nil {
			before = p.err
		}
		if p.when == After && after == nil {
			after = p.err
		}
	}
	hook := f.hook
	f.mu.Unlock()
	if hook != nil {
		hook(method)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead != nil {
		before = f.dead
	}
	return before, after
}
