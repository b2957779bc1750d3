// Package measure leads every column through the same lives, one after the
// other within each round, and takes the time of each step.
package measure

import (
	"context"
	"fmt"
	"time"

	"github.com/remotegpu/remotegpu/test/bench/columns"
	"github.com/remotegpu/remotegpu/test/bench/report"
)

// Options are how to measure.
type Options struct {
	Runs   int
	Warmup int           // rounds before, not counted
	Pause  time.Duration // before each life, for the kernel to clean up after the one before
}

// Run measures the columns, which have been started, and fills in results,
// which has an entry for each of them. In round n the n-th column goes first,
// so that none is always the one after a certain other. A column that fails is
// left out from then on.
func Run(ctx context.Context, options Options, cols []columns.Column, results map[string]*report.Column, say func(string)) error {
	for round := range options.Warmup + options.Runs {
		for i := range cols {
			column := cols[(round+i)%len(cols)]
			result := results[column.Name()]
			if result.Failure != "" {
				continue
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("measure: %w", ctx.Err())
			case <-time.After(options.Pause):
			}
			taken, err := live(ctx, column, fmt.Sprintf("bench-%d", round))
			if err != nil {
				result.Failure = err.Error()
				say(fmt.Sprintf("%s failed in round %d: %v\n%s", column.Name(), round+1, err, column.Tail()))
				continue
			}
			if round >= options.Warmup {
				taken.into(result)
			}
		}
		say(fmt.Sprintf("round %d of %d done", round+1, options.Warmup+options.Runs))
	}
	return nil
}

// life is what one container's steps took.
type life struct {
	rows    map[report.Row]time.Duration
	spans   map[string]time.Duration // of the create
	removal map[string]time.Duration // of the stop and delete
}

func (l *life) into(result *report.Column) {
	for row, took := range l.rows {
		result.Add(row, took)
	}
	report.AddSpans(result.Spans, l.spans)
	report.AddSpans(result.Removal, l.removal)
}

// portLimit is how long a published port may take to answer.
const portLimit = 30 * time.Second

// live makes one container, enters it and removes it.
func live(ctx context.Context, column columns.Column, id string) (*life, error) {
	taken := &life{rows: map[report.Row]time.Duration{}}
	start := time.Now()
	instance, err := column.Create(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	taken.rows[report.CreateRunning] = time.Since(start)
	taken.spans = instance.Spans
	if instance.Host != nil {
		if err := instance.Host.AwaitBanner(ctx, instance.Port, columns.Banner, portLimit); err != nil {
			return nil, err
		}
		taken.rows[report.CreatePort] = time.Since(start)
	}

	start = time.Now()
	if err := column.Exec(ctx, instance); err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	taken.rows[report.Exec] = time.Since(start)

	start = time.Now()
	if err := column.Remove(ctx, instance); err != nil {
		return nil, fmt.Errorf("stop and delete: %w", err)
	}
	taken.rows[report.StopDelete] = time.Since(start)
	taken.removal = instance.Removal

	if instance.Host == nil {
		return taken, nil
	}
	answers, err := instance.Host.Answers(ctx, instance.Port, columns.Banner)
	if err != nil {
		return nil, err
	}
	if answers {
		return nil, fmt.Errorf("port %d answers after the delete", instance.Port)
	}
	return taken, nil
}
