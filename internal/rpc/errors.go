package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"strings"

	"buf.build/go/protovalidate"
	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"github.com/containerd/errdefs"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// Domain is the domain of every google.rpc.ErrorInfo the API sends.
const Domain = "remotegpu"

// codes maps kinds of errors to Connect codes, first match first. It is the
// only place where the two meet.
var codes = []struct {
	is   func(error) bool
	code connect.Code
}{
	{errdefs.IsInvalidArgument, connect.CodeInvalidArgument},
	{errdefs.IsNotFound, connect.CodeNotFound},
	{errdefs.IsAlreadyExists, connect.CodeAlreadyExists},
	{errdefs.IsFailedPrecondition, connect.CodeFailedPrecondition},
	{errdefs.IsResourceExhausted, connect.CodeResourceExhausted},
	{errdefs.IsPermissionDenied, connect.CodePermissionDenied},
	{errdefs.IsUnauthorized, connect.CodeUnauthenticated},
	{errdefs.IsAborted, connect.CodeAborted},
	{errdefs.IsOutOfRange, connect.CodeOutOfRange},
	{errdefs.IsUnavailable, connect.CodeUnavailable},
	{isDeadline, connect.CodeDeadlineExceeded},
	{isCanceled, connect.CodeCanceled},
	{errdefs.IsNotImplemented, connect.CodeUnimplemented},
	{func(err error) bool { return errors.Is(err, errdefs.ErrUnknown) }, connect.CodeUnknown},
}

func isDeadline(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errdefs.IsDeadlineExceeded(err)
}

func isCanceled(err error) bool {
	return errors.Is(err, context.Canceled) || errdefs.IsCanceled(err)
}

func codeOf(kind error) connect.Code {
	for _, entry := range codes {
		if entry.is(kind) {
			return entry.code
		}
	}
	return connect.CodeInternal
}

// CodeOf is the Connect code of a reason.
func CodeOf(reason problem.Reason) connect.Code { return codeOf(reason.Kind()) }

// toConnect turns an error into what callers see: code, message, and as
// details google.rpc.ErrorInfo (reason), BadRequest (fields at fault) and
// LocalizedMessage (hint). The details of an internal error stay in the log.
func toConnect(err error) *connect.Error {
	problems := problem.All(err)
	if len(problems) == 0 {
		problems = []*problem.Problem{problem.Of(err)}
	}
	first := problems[0]
	code := codeOf(first.Reason.Kind())
	message := first.Message
	if code == connect.CodeInternal {
		message = "internal error; the node's log has the details"
	} else if code != connect.CodeNotFound {
		message = first.Said()
	}
	if len(problems) > 1 && first.Field != "" {
		texts := make([]string, len(problems))
		for i, p := range problems {
			texts[i] = p.Field + ": " + p.Message
		}
		message = strings.Join(texts, "; ")
	}
	failure := connect.NewError(code, message).WithCause(err)
	failure = withDetail(failure, &errdetails.ErrorInfo{Reason: string(first.Reason), Domain: Domain})
	var violations []*errdetails.BadRequest_FieldViolation
	for _, p := range problems {
		if p.Field != "" {
			violations = append(violations, &errdetails.BadRequest_FieldViolation{
				Field: p.Field, Description: p.Message, Reason: string(p.Reason),
				LocalizedMessage: localized(p.Hint),
			})
		}
	}
	if len(violations) > 0 {
		failure = withDetail(failure, &errdetails.BadRequest{FieldViolations: violations})
	}
	if hint := localized(first.Hint); hint != nil {
		failure = withDetail(failure, hint)
	}
	if unfinished, ok := errors.AsType[*unfinishedError](err); ok {
		failure = withDetail(failure, unfinished.response)
	}
	return failure
}

func localized(hint string) *errdetails.LocalizedMessage {
	if hint == "" {
		return nil
	}
	return &errdetails.LocalizedMessage{Locale: "en", Message: hint}
}

func withDetail(failure *connect.Error, message proto.Message) *connect.Error {
	detail, err := connectproto.NewErrorDetail(message)
	if err != nil {
		return failure // a detail that cannot be packed must not hide the error
	}
	return failure.WithDetail(detail)
}

// errorInterceptor maps every error that leaves the server, recovers panics
// and logs what is not the caller's fault.
func errorInterceptor(log *slog.Logger) connect.ServerInterceptor {
	return func(next connect.ServerFunc) connect.ServerFunc {
		return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) (err error) {
			defer func() {
				if value := recover(); value != nil {
					log.ErrorContext(ctx, "an rpc panicked", "procedure", spec.Procedure, "panic", value, "stack", string(debug.Stack()))
					err = toConnect(problem.New(problem.Internal, "panic"))
				}
			}()
			err = next(ctx, spec, stream)
			// The end of a caller's stream, not of something that was read for it.
			if err == nil || errors.Is(err, io.EOF) && len(problem.All(err)) == 0 {
				return err
			}
			failure := mapError(ended(ctx, err))
			if failure.Code() == connect.CodeInternal {
				log.ErrorContext(ctx, "an rpc failed", "procedure", spec.Procedure, "error", err)
			}
			return failure
		}
	}
}

// ended adds to an error without a problem why its call ended, where it did:
// its caller left, took too long, or the node stops. What fails then fails in
// many ways that do not say so.
func ended(ctx context.Context, err error) error {
	if ctx.Err() == nil || len(problem.All(err)) > 0 {
		return err
	}
	if failure, ok := errors.AsType[*connect.Error](err); ok {
		if failure.Code() == connect.CodeCanceled {
			return context.Cause(ctx)
		}
		return err
	}
	return fmt.Errorf("%w: %w", context.Cause(ctx), err)
}

// mapError also gives a reason to the errors that Connect itself makes: broken
// rules of the contract, requests that are too large or cannot be read.
func mapError(err error) *connect.Error {
	failure, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return toConnect(err)
	}
	if broken, ok := errors.AsType[*protovalidate.ValidationError](err); ok {
		return toConnect(fieldProblems(broken))
	}
	switch failure.Code() { //nolint:exhaustive // the others carry what a client needs
	case connect.CodeResourceExhausted:
		return toConnect(problem.New(problem.RequestTooLarge, "the request is too large: %s", failure.Message()).
			WithHint("requests are limited to %d bytes", MaxRequestBytes))
	case connect.CodeInvalidArgument:
		return toConnect(problem.New(problem.RequestMalformed, "the request cannot be read: %s", failure.Message()).
			WithHint("check it against the API's definition (api/remotegpu/v1)"))
	}
	return failure
}

// Unauthenticated is the refusal of a call without the node's token.
func Unauthenticated() *connect.Error {
	return toConnect(problem.New(problem.Unauthenticated, "the call carries no valid token").
		WithHint("set REMOTEGPU_TOKEN to the content of the file token in the node's state_dir (/var/lib/remotegpu unless configured), or use the unix socket as root"))
}
