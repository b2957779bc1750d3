package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/spf13/pflag"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

var errTimeout = errors.New("timeout")

// waiting are the flags of a command that starts an operation.
type waiting struct {
	noWait    bool
	timeout   time.Duration
	requestID string
}

func (w *waiting) register(flags *pflag.FlagSet) {
	flags.BoolVar(&w.noWait, "no-wait", false, "start it and return; follow it with remotegpu op watch")
	flags.Var((*span)(&w.timeout), "timeout", "wait at most this long (exit code 8); the operation goes on; 0 waits until it is done")
	flags.StringVar(&w.requestID, "request-id", "", "makes repeating the command safe: the same id answers with the first one's operation")
}

// id is the request id: the caller's, or a random one.
func (w *waiting) id() string { return orElse(w.requestID, rand.Text()) }

// await waits for an operation unless the caller does not want to, and turns
// its failure into an error. op may be nil: nothing was to be done.
func (a *app) await(ctx context.Context, c *clients, w *waiting, op *remotegpuv1.Operation) (*remotegpuv1.Operation, error) {
	if op == nil {
		return nil, nil //nolint:nilnil // nothing was to be done
	}
	if w.noWait {
		a.say("operation %s goes on; follow it with: remotegpu op watch %s", op.GetId(), op.GetId())
		return op, nil
	}
	op, err := a.follow(ctx, c, op, w.timeout)
	if err != nil {
		return op, err
	}
	return op, outcome(op)
}

// follow shows the progress of an operation until it is done.
func (a *app) follow(ctx context.Context, c *clients, op *remotegpuv1.Operation, timeout time.Duration) (*remotegpuv1.Operation, error) {
	bar := newProgress(a.stderr)
	defer bar.close()
	op, err := states(ctx, c, op, timeout, bar.note, func(now *remotegpuv1.Operation) error {
		bar.show(now)
		return nil
	})
	if err != nil {
		return op, err
	}
	bar.show(op)
	return op, nil
}

// states gives each state of an operation to each until it is done; one that is
// done already has none. It survives a restart of the daemon, as operations do.
func states(ctx context.Context, c *clients, op *remotegpuv1.Operation, timeout time.Duration,
	note func(string), each func(*remotegpuv1.Operation) error,
) (*remotegpuv1.Operation, error) {
	// Not a deadline: the transport would tell the server, whose answer that
	// time is up can be here before we know ourselves.
	watchCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if timeout > 0 {
		timer := time.AfterFunc(timeout, func() { cancel(errTimeout) })
		defer timer.Stop()
	}
	again := reconnect{lostFor: lostFor, note: note}
	for !done(op) {
		err := watch(watchCtx, c, op.GetId(), func(now *remotegpuv1.Operation) error {
			op = now
			again.reached()
			return each(now)
		})
		if done(op) {
			return op, err // that of each: a watch ends with the last state
		}
		if err == nil {
			err = connect.NewError(connect.CodeUnavailable, "the node ended the watch")
		}
		err = again.wait(watchCtx, err)
		if watchCtx.Err() != nil {
			return op, left(op, context.Cause(watchCtx))
		}
		if err != nil {
			return op, err
		}
	}
	return op, nil
}

// watch sends each state of an operation to each until the stream ends.
func watch(ctx context.Context, c *clients, id string, each func(*remotegpuv1.Operation) error) error {
	stream, err := c.operations.WatchOperation(ctx, &remotegpuv1.WatchOperationRequest{Id: id})
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // read to its end, or abandoned
	for {
		message, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := each(message.GetOperation()); err != nil || done(message.GetOperation()) {
			return err
		}
	}
}

// left says that the operation goes on without us.
func left(op *remotegpuv1.Operation, cause error) error {
	f := &failure{
		Code: "canceled", Message: "interrupted; operation " + op.GetId() + " goes on",
		Hints: []string{"remotegpu op watch " + op.GetId() + " follows it, remotegpu op cancel " + op.GetId() + " stops it"},
		exit:  exitInterrupted,
	}
	if errors.Is(cause, errTimeout) {
		f.Code, f.Message, f.exit = "deadline_exceeded", "still not done; operation "+op.GetId()+" goes on", exitFailed
	}
	return f
}

func done(op *remotegpuv1.Operation) bool {
	switch op.GetState() {
	case remotegpuv1.OperationState_OPERATION_STATE_SUCCEEDED,
		remotegpuv1.OperationState_OPERATION_STATE_FAILED,
		remotegpuv1.OperationState_OPERATION_STATE_CANCELLED:
		return true
	default:
		return false
	}
}

// outcome is the error of an operation that is done.
func outcome(op *remotegpuv1.Operation) error {
	switch op.GetState() {
	case remotegpuv1.OperationState_OPERATION_STATE_FAILED:
		return problemFailure(op.GetKind()+" failed", op.GetProblem())
	case remotegpuv1.OperationState_OPERATION_STATE_CANCELLED:
		f := problemFailure(op.GetKind()+" was cancelled", op.GetProblem())
		f.exit = exitFailed
		return f
	default:
		return nil
	}
}
