package helper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// Subcommand is the argument that makes the daemon's program the helper.
const Subcommand = "gpu-helper"

// DefaultIdle is longer than the pause between two looks of the reconciler at a
// node with environments, each of which asks: else each would start a process.
const DefaultIdle = 5 * time.Minute

// Config is how the helper is run.
type Config struct {
	Program  string        // "": the program that runs
	Args     []string      // nil: Subcommand
	Settings any           // what Serve's open gets, as JSON
	Timeout  time.Duration // the longest that a call takes. 0: a minute
	Grace    time.Duration // what a call gets to end after its context. 0: 5 s
	Idle     time.Duration // after which a helper that is asked nothing is ended. 0: DefaultIdle
	Log      *slog.Logger
}

// Client is gpu.Driver. The helper is started with the first call, and again
// with the first after it died, with a pause that grows while it keeps dying.
// Calls wait for each other.
type Client struct {
	cfg  Config
	turn chan struct{} // holds one token: whose turn it is has what follows

	process *process // nil: none
	asked   int64    // questions so far
	deaths  int      // in a row
	died    time.Time
	idle    *time.Timer

	closed   atomic.Bool
	current  atomic.Pointer[process] // process, for Close
	stuck    stuck
	watching watching
}

var _ gpu.Driver = (*Client)(nil)

// New returns a client. Close ends its processes.
func New(cfg Config) *Client {
	if cfg.Program == "" {
		cfg.Program = "/proc/self/exe" // also when the file was replaced by an upgrade
	}
	if cfg.Args == nil {
		cfg.Args = []string{Subcommand}
	}
	for _, field := range []struct {
		value *time.Duration
		least time.Duration
	}{{&cfg.Timeout, time.Minute}, {&cfg.Grace, 5 * time.Second}, {&cfg.Idle, DefaultIdle}} {
		if *field.value == 0 {
			*field.value = field.least
		}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{cfg: cfg, turn: make(chan struct{}, 1)}
	c.watching.stuck = &c.stuck
	c.turn <- struct{}{}
	return c
}

// Close ends the helper; a call that is at work fails.
func (c *Client) Close() error {
	c.closed.Store(true)
	c.watching.close()
	if process := c.current.Load(); process != nil {
		process.kill()
	}
	<-c.turn
	c.end()
	c.turn <- struct{}{}
	return nil
}

// release passes the turn on, and ends the helper when it is asked nothing.
func (c *Client) release() {
	if c.process != nil {
		if c.idle == nil {
			c.idle = time.AfterFunc(c.cfg.Idle, c.rest)
		} else {
			c.idle.Reset(c.cfg.Idle)
		}
	}
	c.turn <- struct{}{}
}

// rest ends the helper, unless it is at work again.
func (c *Client) rest() {
	select {
	case <-c.turn:
		c.end()
		c.turn <- struct{}{}
	default:
	}
}

// end ends the process that there may be.
func (c *Client) end() {
	if c.process != nil {
		c.stuck.kill(c.process)
		c.process = nil
		c.current.Store(nil)
	}
	if c.idle != nil {
		c.idle.Stop()
	}
}

// call asks the helper. result may be nil.
func (c *Client) call(ctx context.Context, q question, result any) error {
	if ctx.Err() != nil {
		return late(ctx)
	}
	select {
	case <-c.turn:
	case <-ctx.Done():
		return late(ctx)
	}
	for again := false; ; again = true {
		if err := c.ready(ctx); err != nil {
			c.release()
			return err
		}
		fresh := c.process.fresh
		a, err := c.ask(ctx, q)
		if errors.Is(err, errNotAsked) {
			if again {
				return c.lost(ctx, q)
			}
			c.end() // it ended since the last call
			continue
		}
		if err != nil {
			return err // ask has passed the turn on, or will
		}
		if a.Stale && !fresh && !again {
			c.end() // a new process loads what is installed now
			continue
		}
		c.release()
		if err := a.err(); err != nil {
			return err
		}
		return decode(a.Result, result)
	}
}

func decode(text json.RawMessage, result any) error {
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(text, result); err != nil {
		return fmt.Errorf("read the GPU helper's answer: %w", err)
	}
	return nil
}

// ready makes sure that a helper runs.
func (c *Client) ready(ctx context.Context) error {
	if c.closed.Load() {
		return problem.New(problem.NodeStopping, "the daemon stops")
	}
	if c.process != nil {
		if c.process.running() {
			return nil
		}
		c.cfg.Log.WarnContext(ctx, "the GPU helper ended between two calls", "error", c.process.failure())
		c.end()
	}
	if err := c.stuck.check(); err != nil {
		return err
	}
	if c.deaths > 1 {
		pause := min(100*time.Millisecond<<min(c.deaths-2, 6), 5*time.Second)
		timer := time.NewTimer(time.Until(c.died.Add(pause)))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return late(ctx)
		}
	}
	process, err := start(ctx, c.cfg)
	if err != nil {
		c.count()
		return problem.New(problem.GPUUnavailable, "the GPU helper cannot be started").WithCause(err).
			WithHint("see the daemon's log; is remotegpud installed whole?")
	}
	c.process = process
	c.current.Store(process)
	if c.closed.Load() { // Close did not see it
		c.end()
		return problem.New(problem.NodeStopping, "the daemon stops")
	}
	return nil
}

func (c *Client) count() { c.deaths, c.died = c.deaths+1, time.Now() }

// errNotAsked is a question that the process did not take.
var errNotAsked = errors.New("the GPU helper takes no question")

// ask asks the process that runs. With another error than errNotAsked the turn
// is passed on, if need be when the process has answered or was ended.
func (c *Client) ask(ctx context.Context, q question) (answer, error) {
	c.asked++
	q.ID = c.asked
	process := c.process
	if err := process.ask(q); err != nil {
		return answer{}, errNotAsked
	}
	timeout := time.NewTimer(c.cfg.Timeout)
	defer timeout.Stop()
	for {
		select {
		case a, ok := <-process.answers:
			if !ok {
				return answer{}, c.lost(ctx, q)
			}
			if a.ID != q.ID {
				continue
			}
			process.fresh = false
			c.deaths = 0
			return a, nil
		case <-ctx.Done():
			go c.abandon(ctx, process, q)
			return answer{}, late(ctx)
		case <-timeout.C:
			c.hung(ctx, q)
			c.release()
			return answer{}, problem.New(problem.GPUUnavailable, "the GPU software did not answer in %s (%s)", c.cfg.Timeout, q.Method).WithHint(hintHung)
		}
	}
}

const hintHung = "a GPU may hang: see the host's kernel log (NVRM, Xid); drain and reset it (remotegpu gpu drain GPU, nvidia-smi -r -i GPU), or reboot the host"

// lost is the end of the process in the middle of a call.
func (c *Client) lost(ctx context.Context, q question) error {
	err := c.process.failure()
	c.cfg.Log.ErrorContext(ctx, "the GPU helper died", "method", q.Method, "error", err)
	c.end()
	c.count()
	c.release()
	return problem.New(problem.GPUUnavailable, "the GPU software failed (%s)", q.Method).WithCause(err).
		WithHint("other calls are not affected; a symbol that is missing means a driver that is too old, or damaged")
}

// hung ends a process that does not answer.
func (c *Client) hung(ctx context.Context, q question) {
	c.cfg.Log.ErrorContext(ctx, "the GPU helper hangs and is killed", "method", q.Method)
	c.end()
	c.count()
}

// abandon waits a moment for a call that nobody waits for any more, so that
// what it changes is whole, and then ends it.
func (c *Client) abandon(ctx context.Context, process *process, q question) {
	defer c.release()
	grace := time.NewTimer(c.cfg.Grace)
	defer grace.Stop()
	for {
		select {
		case a, ok := <-process.answers:
			if !ok {
				c.end()
				c.count()
				return
			}
			if a.ID == q.ID {
				process.fresh = false
				return
			}
		case <-grace.C:
			c.hung(context.WithoutCancel(ctx), q)
			return
		}
	}
}

// late is the end of a call's context.
func late(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return problem.New(problem.GPUUnavailable, "the GPU software did not answer in time").WithCause(context.Cause(ctx)).WithHint(hintHung)
	}
	return context.Cause(ctx)
}
