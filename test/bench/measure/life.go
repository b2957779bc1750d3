package measure

import (
	"context"
	"fmt"
	"time"

	"github.com/remotegpu/remotegpu/test/bench/columns"
	"github.com/remotegpu/remotegpu/test/bench/report"
)

// lives leads one container of each column through its life per round. In
// round n the n-th column goes first, so that none is always the one after a
// certain other.
func (m *measurement) lives(ctx context.Context) error {
	for round := range m.Warmup + m.Runs {
		for i := range m.columns {
			column := m.columns[(round+i)%len(m.columns)]
			err := m.step(ctx, column, func(result *report.Column) error {
				taken, err := live(ctx, column, fmt.Sprintf("bench-%d", round))
				if err == nil && round >= m.Warmup {
					taken.into(result)
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		m.say(fmt.Sprintf("round %d of %d done", round+1, m.Warmup+m.Runs))
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
	result.AddSpans("a create", l.spans)
	result.AddSpans("a stop+delete", l.removal)
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
