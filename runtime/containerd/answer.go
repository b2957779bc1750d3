package containerd

import (
	"context"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// unbound are calls that take as long as they take: until a process ends, or
// as many bytes as a layer has are read and written.
var unbound = map[string]bool{
	taskCalls + "Wait":                                   true,
	"/containerd.services.diff.v1.Diff/Apply":            true,
	"/containerd.services.diff.v1.Diff/Diff":             true,
	"/containerd.services.snapshots.v1.Snapshots/Commit": true, // adds up what the layer takes
	"/containerd.services.images.v1.Images/Delete":       true, // with what nothing else needs
	"/containerd.services.leases.v1.Leases/Delete":       true, // as above
}

// unanswered marks the end of a limit of ours, which is said behind it. The
// client's stores keep no more of an error than its code and text.
const unanswered = "no answer within "

// busyHint is what to do about a containerd that does not answer.
const busyHint = "it is there; see its log and what keeps the host busy. If it stays so, restart it: environments run on meanwhile"

// bound gives calls a deadline that have none, except those that are unbound. A
// shim that does not answer is waited for without the worker of an operation.
func (e *Engine) bound(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	whole, limit := ctx, e.patience
	if own, is := limits[method]; is {
		limit = min(limit, own)
	}
	_, has := ctx.Deadline()
	ours := !has && !unbound[method]
	if ours {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	if err := fault.Before(ctx, method); err != nil {
		return err
	}
	call := func() error { return invoke(ctx, method, req, reply, conn, opts...) }
	var err error
	if strings.HasPrefix(method, taskCalls) && !unbound[method] {
		err = patiently(whole, call)
	} else {
		err = call()
	}
	if err != nil {
		// containerd keeps the same deadline and may tell of its end first, under
		// whatever code. Then it is the caller's own end, see explain.
		if deadline, has := ctx.Deadline(); has && time.Until(deadline) <= 0 {
			<-ctx.Done()
		}
		switch code := status.Code(err); {
		case ours && errors.Is(ctx.Err(), context.DeadlineExceeded) && (code == codes.Unknown || code == codes.DeadlineExceeded):
			return status.Error(codes.DeadlineExceeded, unanswered+limit.String()+": "+err.Error())
		case ctx.Err() != nil && code == codes.Unknown:
			return status.Error(status.FromContextError(ctx.Err()).Code(), err.Error())
		}
		return err
	}
	return fault.After(ctx, method)
}

// noAnswer tells a containerd that is not there from one that is, and has not
// answered in time: the first is to be started, the other to be looked at. nil
// for other errors.
func (e *Engine) noAnswer(err error) *problem.Problem {
	_, limit, ours := strings.Cut(err.Error(), unanswered)
	limit, _, _ = strings.Cut(limit, ":")
	switch {
	case errdefs.IsUnavailable(err) && strings.Contains(err.Error(), "server preface") && strings.Contains(err.Error(), net.ErrClosed.Error()):
		// Its socket takes connections, nobody greets, and grpc has hung up.
		return problem.New(problem.ContainerdTimeout, "containerd at %s did not answer within %s", e.cfg.Address, connectTimeout).WithCause(err).
			WithHint("%s", busyHint)
	case errdefs.IsUnavailable(err):
		return problem.New(problem.ContainerdDown, "containerd at %s does not answer", e.cfg.Address).WithCause(err).
			WithHint("see whether it runs, for example with: systemctl status containerd")
	case !errors.Is(err, context.DeadlineExceeded): // not the caller's, see explain
		return nil
	case ours:
		return problem.New(problem.ContainerdTimeout, "containerd at %s did not answer within %s", e.cfg.Address, limit).WithCause(err).
			WithHint("%s", busyHint)
	default: // containerd keeps limits of its own
		return problem.New(problem.ContainerdTimeout, "containerd at %s gave up: a shim or a runtime did not answer it in time", e.cfg.Address).WithCause(err).
			WithHint("%s", busyHint)
	}
}
