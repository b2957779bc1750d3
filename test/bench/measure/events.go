package measure

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/remotegpu/remotegpu/test/bench/columns"
	"github.com/remotegpu/remotegpu/test/bench/report"
)

// toldLimit is how long a stream may take to tell of an end.
const toldLimit = 30 * time.Second

// listener is a column whose container dies again and again.
type listener struct {
	column   columns.Complete
	instance *columns.Instance
	told     chan time.Time
	failed   chan error
}

// events ends the process of one container of each column again and again and
// waits for the column's stream to say so. The end is when the connection to
// the process breaks, which the kernel does while it ends it.
func (m *measurement) events(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var listeners []*listener
	err := m.complete(ctx, func(column columns.Complete, _ *report.Column) error {
		l := &listener{column: column, told: make(chan time.Time, 16), failed: make(chan error, 1)}
		var err error
		if l.instance, err = column.Create(ctx, "events"); err != nil {
			return fmt.Errorf("create: %w", err)
		}
		listeners = append(listeners, l)
		return l.listen(ctx)
	})
	if err != nil {
		return err
	}
	for round := range m.Warmup + m.Deaths {
		for _, l := range listeners {
			err := m.step(ctx, l.column, func(result *report.Column) error {
				took, err := l.die(ctx)
				if err != nil {
					return err
				}
				if round >= m.Warmup {
					result.Add(report.Death, took)
				}
				if err := l.column.Restart(ctx, l.instance); err != nil {
					return fmt.Errorf("start again: %w", err)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		if (round+1)%20 == 0 {
			m.say(fmt.Sprintf("%d of %d have ended", round+1, m.Warmup+m.Deaths))
		}
	}
	return nil
}

// listen opens the column's stream and returns when it stands.
func (l *listener) listen(ctx context.Context) error {
	ready := make(chan struct{})
	go func() {
		l.failed <- l.column.Deaths(ctx, func() { close(ready) }, func(id string) {
			if id == l.instance.ID {
				l.told <- time.Now()
			}
		})
	}()
	select {
	case <-ready:
		return nil
	case err := <-l.failed:
		return fmt.Errorf("listen: %w", err)
	case <-time.After(toldLimit):
		return errors.New("listen: the stream did not begin")
	}
}

// die ends the process and waits until that is told.
func (l *listener) die(ctx context.Context) (time.Duration, error) {
	if err := l.instance.Host.AwaitBanner(ctx, l.instance.Port, columns.Banner, portLimit); err != nil {
		return 0, err
	}
	if _, err := l.instance.Host.Ask(ctx, l.instance.Port, columns.Banner, "exit 3"); err != nil {
		return 0, err
	}
	ended := time.Now()
	select {
	case at := <-l.told:
		return max(0, at.Sub(ended)), nil
	case err := <-l.failed:
		return 0, fmt.Errorf("listen: %w", err)
	case <-time.After(toldLimit):
		return 0, fmt.Errorf("listen: the end was not told of within %s", toldLimit)
	}
}
