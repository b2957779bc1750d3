package measure

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/remotegpu/remotegpu/test/bench/columns"
	"github.com/remotegpu/remotegpu/test/bench/report"
)

const (
	lineLength = 100        // bytes of a line, its newline included
	pace       = 50_000_000 // bytes a second of one that does not write all it can
	drop       = 1 << 20    // bytes of each of many, less than any of their logs keeps
	// logLimit is how long lines may take to be in the log.
	logLimit = 30 * time.Second
)

// written is what the image's program says of its writing.
type written struct {
	Lines   int64   `json:"lines"`
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
	Longest float64 `json:"longest"`
	Error   string  `json:"error"`
}

// megabytes is how many a second it got rid of.
func (w *written) megabytes() float64 { return float64(w.Bytes) / 1e6 / w.Seconds }

// logs has containers write to their logs and looks whether all of it arrived.
func (m *measurement) logs(ctx context.Context) error {
	for round := range m.Floods {
		err := m.complete(ctx, func(column columns.Complete, result *report.Column) error {
			return m.logOne(ctx, column, result, fmt.Sprintf("log-%d", round))
		})
		if err != nil {
			return err
		}
		m.say(fmt.Sprintf("logs, round %d of %d done", round+1, m.Floods))
	}
	return m.complete(ctx, func(column columns.Complete, result *report.Column) error {
		return m.logMany(ctx, column, result)
	})
}

// logOne measures a container that logs alone.
func (m *measurement) logOne(ctx context.Context, column columns.Complete, result *report.Column, id string) error {
	instance, err := column.Create(ctx, id)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	total := int64(m.Flood) << 20
	did, err := write(ctx, column, instance, total, 0)
	if err != nil {
		return err
	}
	result.AddValue(report.LogRate, did.megabytes())
	if did, err = write(ctx, column, instance, total, pace); err != nil {
		return err
	}
	result.AddValue(report.LogPaced, did.megabytes())
	result.AddValue(report.LogStall, did.Longest*1e3)
	if err := column.Remove(ctx, instance); err != nil {
		return fmt.Errorf("stop and delete: %w", err)
	}
	return nil
}

// write has a container write and waits until its last line is in the log.
func write(ctx context.Context, column columns.Complete, instance *columns.Instance, bytes, rate int64) (*written, error) {
	did, err := ask(ctx, instance, bytes, rate)
	if err != nil {
		return nil, err
	}
	last := fmt.Sprintf("line %012d ", did.Lines-1)
	deadline := time.Now().Add(logLimit)
	for {
		var line string
		if err := column.Logs(ctx, instance, 1, func(text []byte) { line = string(text) }); err != nil {
			return nil, fmt.Errorf("read log: %w", err)
		}
		if len(line) == lineLength-1 && line[:len(last)] == last {
			return did, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("the log ends with %q, want %q", line, last)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func ask(ctx context.Context, instance *columns.Instance, bytes, rate int64) (*written, error) {
	if err := instance.Host.AwaitBanner(ctx, instance.Port, columns.Banner, portLimit); err != nil {
		return nil, err
	}
	answer, err := instance.Host.Ask(ctx, instance.Port, columns.Banner, fmt.Sprintf("log %d %d %d", bytes, lineLength, rate))
	if err != nil {
		return nil, err
	}
	var did written
	if err := json.Unmarshal([]byte(answer), &did); err != nil {
		return nil, fmt.Errorf("read answer %q: %w", answer, err)
	}
	if did.Error != "" {
		return nil, fmt.Errorf("write to standard output: %s", did.Error)
	}
	return &did, nil
}

// logMany measures containers that log at once, and counts every line.
func (m *measurement) logMany(ctx context.Context, column columns.Complete, result *report.Column) error {
	instances, err := createMany(ctx, column, "logs", m.Many, makers)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var took []float64
	var total int64
	group, groupCtx := errgroup.WithContext(ctx)
	start := time.Now()
	for _, instance := range instances {
		group.Go(func() error {
			did, err := ask(groupCtx, instance, drop, 0)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, time.Since(start).Seconds())
			total += did.Bytes
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	result.AddValue(report.LogTogether, float64(total)/1e6/time.Since(start).Seconds())
	slices.Sort(took)
	result.AddValue(report.LogSlowest, took[len(took)-1]/took[len(took)/2])
	for _, instance := range instances {
		if err := complete(ctx, column, instance, (drop+lineLength-1)/lineLength); err != nil {
			return err
		}
	}
	return removeMany(ctx, column, instances, makers)
}

// complete waits until the log has each line once, in order.
func complete(ctx context.Context, column columns.Complete, instance *columns.Instance, want int64) error {
	deadline := time.Now().Add(logLimit)
	for {
		var next int64
		var wrong string
		err := column.Logs(ctx, instance, 0, func(line []byte) {
			var n int64
			if matched, _ := fmt.Sscanf(string(line), "line %d ", &n); matched != 1 {
				return // what the program says of itself
			}
			if n != next && wrong == "" {
				wrong = fmt.Sprintf("after line %d comes line %d", next-1, n)
			}
			next = n + 1
		})
		switch {
		case err != nil:
			return fmt.Errorf("read log: %w", err)
		case wrong != "":
			return fmt.Errorf("log of %s: %s", instance.ID, wrong)
		case next == want:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("log of %s has %d lines, want %d", instance.ID, next, want)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}
