package operation

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// Causes with which a handler's context ends (context.Cause).
var (
	// ErrShutdown: the daemon stops. The handler returns soon and undoes
	// nothing that its next attempt can go on from; the operation is run again
	// at the next start.
	ErrShutdown = errors.New("the daemon is shutting down")
	// ErrCancelled: somebody cancelled the operation. The handler undoes what
	// it did and returns.
	ErrCancelled error = problem.New(problem.OperationCancelled, "the operation was cancelled")
	// ErrLeaseLost: another process took the operation over. The handler
	// stops and touches nothing more.
	ErrLeaseLost = errors.New("the lease of the operation was lost")
)

// transient says whether another attempt may help.
func transient(err error) bool { return errdefs.IsUnavailable(err) && !IsPermanent(err) }

// ProblemOf is err as it is kept; nil is that of none.
func ProblemOf(err error) *Problem {
	p := problem.Of(err)
	if p == nil {
		return nil
	}
	return &Problem{Reason: string(p.Reason), Message: p.Said(), Field: p.Field, Hint: p.Hint}
}

func cancelledProblem() *Problem { return ProblemOf(ErrCancelled) }

func interruptedProblem(attempts int) *Problem {
	return ProblemOf(problem.New(problem.OperationInterrupted,
		"the daemon stopped %d times while it worked on this; it is given up", attempts).
		WithHint("look into the daemon's log for why it stopped, then ask again"))
}

// shuttingDown says whether ctx ended because the daemon stops.
func shuttingDown(ctx context.Context) bool { return errors.Is(context.Cause(ctx), ErrShutdown) }
