//go:build !faultpoints

package fault

import "context"

// Declare tells that operations of a kind exist.
func Declare(string) {}

// Within makes what is done with the context belong to a scope: prefix and
// kind.
func Within(ctx context.Context, _, _ string) context.Context { return ctx }

// Point stands between two steps. The error is the one of the step that
// follows.
func Point(context.Context, string) error { return nil }

// Before stands before a call that changes something, which is not made when
// it returns an error.
func Before(context.Context, string) error { return nil }

// After stands behind a call that has changed something. An error is an answer
// that was lost.
func After(context.Context, string) error { return nil }
