package cli

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect/v2"
)

// lostFor is how long a broken connection is tried again before giving up: a
// daemon that is upgraded is back long before.
const lostFor = 30 * time.Second

// steady is how long an attempt lasts at least that has reached the server,
// which says nothing while there is nothing to say: one that nobody answers
// fails before, see httpClient.
const steady = 15 * time.Second

// reconnect paces what is tried again after its connection broke.
type reconnect struct {
	lostFor time.Duration
	note    func(string) // tells people, once for each loss

	attempt int
	lost    time.Time // when the connection was found broken
	tried   time.Time // when the last attempt began
}

// reached says that the server has answered.
func (r *reconnect) reached() { r.attempt = 0 }

// wait lets some time pass before the next attempt. It returns err when that
// is not the connection's, or it has been broken for too long, and the cause
// of ctx when that ends.
func (r *reconnect) wait(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !broken(err) {
		return err
	}
	if r.attempt > 0 && time.Since(r.tried) > steady {
		r.reached()
	}
	if r.attempt++; r.attempt == 1 {
		r.lost = time.Now()
		r.note("connection lost, trying again")
	} else if time.Since(r.lost) > r.lostFor {
		return err
	}
	if sleep(ctx, min(time.Duration(r.attempt)*250*time.Millisecond, 2*time.Second)) != nil {
		return context.Cause(ctx)
	}
	r.tried = time.Now()
	return nil
}

// broken says whether the connection is at fault rather than the request.
func broken(err error) bool {
	remote, ok := errors.AsType[*connect.Error](err)
	return ok && (!remote.IsRemote() || remote.Code() == connect.CodeUnavailable)
}
