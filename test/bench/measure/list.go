package measure

import (
	"context"
	"fmt"
	"time"

	"github.com/remotegpu/remotegpu/test/bench/columns"
	"github.com/remotegpu/remotegpu/test/bench/report"
)

const (
	page = 50
	// peersTo is up to how many containers the peers are measured: nothing is
	// compared with them beyond, and theirs take minutes to make.
	peersTo = 200
	// makers is how many containers are made at once where that is not what is
	// measured.
	makers = 6
)

var listRows = map[int]struct{ all, page report.Row }{
	1:   {all: report.List1},
	50:  {report.List50, report.Page50Of50},
	200: {report.List200, report.Page50Of200},
	500: {report.List500, report.Page50Of500},
}

// lists makes more and more containers and lists them.
func (m *measurement) lists(ctx context.Context) error {
	return m.complete(ctx, func(column columns.Complete, result *report.Column) error {
		there := 0
		for _, n := range m.Scale {
			if n > peersTo && column.Name() != columns.RemoteGPU {
				break
			}
			if _, err := createMany(ctx, column, fmt.Sprintf("list-%d", n), n-there, makers); err != nil {
				return err
			}
			there = n
			m.say(fmt.Sprintf("%s has %d", column.Name(), n))
			// Its own aftermath, not what is measured.
			if err := pause(ctx, 5*m.Pause); err != nil {
				return err
			}
			if err := m.list(ctx, column, result, listRows[n].all, n, n); err != nil {
				return err
			}
			if listRows[n].page == "" {
				continue
			}
			if err := m.list(ctx, column, result, listRows[n].page, page, page); err != nil {
				return err
			}
		}
		return nil
	})
}

// list calls a few times and expects so many to be answered. The calls are
// apart, so that what the columns do now and then (a look at all, a collection)
// meets a few of them and not all.
func (m *measurement) list(ctx context.Context, column columns.Complete, result *report.Column, row report.Row, limit, want int) error {
	for i := range m.Lists + m.Warmup {
		if err := pause(ctx, m.Pause/4); err != nil {
			return err
		}
		start := time.Now()
		got, err := column.List(ctx, limit)
		took := time.Since(start)
		if err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("list: %d were answered, want %d", got, want)
		}
		if i >= m.Warmup {
			result.Add(row, took)
		}
	}
	return nil
}
