package containerd

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"
)

// errStandstill ends a transfer in which nothing moved for too long.
var errStandstill = errors.New("nothing was transferred for too long")

// brokenOff is the error of a transfer that had begun: of the registry or of
// the way there, whatever kind the HTTP client's error is of.
type brokenOff struct{ err error }

func (b *brokenOff) Error() string { return "transfer broken off: " + b.err.Error() }

// Unwrap returns the cause.
func (b *brokenOff) Unwrap() error { return b.err }

// impatient ends transfers in which the registry sends or takes nothing for as
// long as patience. A transport by itself bounds only the wait for the header of
// an answer. What the other side of a transfer takes, our disk for example, does
// not count.
type impatient struct {
	next     http.RoundTripper
	patience time.Duration
}

// RoundTrip implements http.RoundTripper.
func (i impatient) RoundTrip(request *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(request.Context())
	request = request.WithContext(ctx)
	idle := func() *time.Timer {
		timer := time.AfterFunc(i.patience, func() { cancel(errStandstill) })
		timer.Stop()
		return timer
	}
	if request.Body != nil && request.Body != http.NoBody {
		request.Body = &leaving{ReadCloser: request.Body, idle: idle(), patience: i.patience}
	}
	response, err := i.next.RoundTrip(request)
	if err != nil {
		err = cutShort(ctx, err)
		cancel(nil)
		return nil, err
	}
	response.Body = &arriving{ReadCloser: response.Body, ctx: ctx, cancel: cancel, idle: idle(), patience: i.patience}
	return response, nil
}

// cutShort is the error of a transfer, which a standstill ended if it did.
func cutShort(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errStandstill) {
		return &brokenOff{errStandstill}
	}
	return err
}

// leaving is the body of a request. Between two reads it is on its way.
type leaving struct {
	io.ReadCloser
	idle     *time.Timer
	patience time.Duration
}

// Read implements io.Reader.
func (l *leaving) Read(p []byte) (int, error) {
	l.idle.Stop()
	n, err := l.ReadCloser.Read(p)
	if err == nil {
		l.idle.Reset(l.patience)
	}
	return n, err
}

// Close implements io.Closer.
func (l *leaving) Close() error {
	l.idle.Stop()
	return l.ReadCloser.Close()
}

// arriving is the body of an answer. It is waited for while it is read.
type arriving struct {
	io.ReadCloser
	ctx      context.Context //nolint:containedctx // of the request, which is as old as this
	cancel   context.CancelCauseFunc
	idle     *time.Timer
	patience time.Duration
}

// Read implements io.Reader.
func (a *arriving) Read(p []byte) (int, error) {
	a.idle.Reset(a.patience)
	n, err := a.ReadCloser.Read(p)
	a.idle.Stop()
	if err == nil || errors.Is(err, io.EOF) {
		return n, err
	}
	if err = cutShort(a.ctx, err); a.ctx.Err() != nil {
		return n, err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return n, err // by this very value containerd's client knows where it may go on
	}
	return n, &brokenOff{err}
}

// Close implements io.Closer.
func (a *arriving) Close() error {
	a.idle.Stop()
	err := a.ReadCloser.Close()
	a.cancel(nil)
	return err
}
