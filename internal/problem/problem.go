// Package problem is the one vocabulary of failures: an error with a kind
// (containerd/errdefs), a reason that programs can branch on, the request
// field at fault and a hint for people. It leaves the wire to internal/rpc.
package problem

import (
	"errors"
	"fmt"
)

// Problem is an error that says what to do about it. It unwraps to its kind
// and to its cause, so errdefs.IsNotFound and errors.Is work on it.
type Problem struct {
	// Reason is the machine-readable cause; it decides the kind.
	Reason Reason
	// Message says what happened, for people.
	Message string
	// Field is the request field at fault, as a path ("spec.image"), or "".
	Field string
	// Hint says what to do about it, or "".
	Hint string
	// Err is the cause. Callers see it behind Message, unless Told.
	Err error
	// Told says that Message has what callers may know of Err, which is for logs.
	Told bool
}

// New returns a problem with a formatted message.
func New(reason Reason, format string, args ...any) *Problem {
	return &Problem{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// WithField sets the request field at fault.
func (p *Problem) WithField(field string) *Problem { p.Field = field; return p }

// WithHint sets what to do about it.
func (p *Problem) WithHint(format string, args ...any) *Problem {
	p.Hint = fmt.Sprintf(format, args...)
	return p
}

// WithCause sets the cause. It does not change the message.
func (p *Problem) WithCause(err error) *Problem { p.Err = err; return p }

// WithTold sets a cause that the message tells in other words: callers see only
// these.
func (p *Problem) WithTold(err error) *Problem { p.Err, p.Told = err, true; return p }

// Error is the message, with the cause when there is one.
func (p *Problem) Error() string {
	if p.Err != nil {
		return p.Message + ": " + p.Err.Error()
	}
	return p.Message
}

// Said is what callers get to read: the message, with the cause unless Told.
func (p *Problem) Said() string {
	if p.Told {
		return p.Message
	}
	return p.Error()
}

// Unwrap returns the kind and the cause.
func (p *Problem) Unwrap() []error {
	if p.Err != nil {
		return []error{p.Reason.Kind(), p.Err}
	}
	return []error{p.Reason.Kind()}
}

// All returns every problem in err's tree, in order: one error can name
// several fields (errors.Join).
func All(err error) []*Problem {
	var found []*Problem
	var walk func(error)
	walk = func(err error) {
		if p, ok := err.(*Problem); ok { //nolint:errorlint // the tree is walked by hand
			found = append(found, p)
			return
		}
		switch e := err.(type) { //nolint:errorlint // the tree is walked by hand
		case interface{ Unwrap() []error }:
			for _, child := range e.Unwrap() {
				walk(child)
			}
		case interface{ Unwrap() error }:
			if child := e.Unwrap(); child != nil {
				walk(child)
			}
		}
	}
	if err != nil {
		walk(err)
	}
	return found
}

// Of returns the first problem in err's tree, or one made from err: of the
// reason that fits its errdefs kind, INTERNAL where none does. It returns nil
// for nil.
func Of(err error) *Problem {
	if err == nil {
		return nil
	}
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	reason := reasonOfKind(err)
	if reason == DiskFull { // the system's words name a file that nobody knows
		return New(reason, "a disk of the node is full").WithCause(err).
			WithHint("make room, for example by deleting environments, images or snapshots that nobody needs; then try again")
	}
	return &Problem{Reason: reason, Message: err.Error()}
}
