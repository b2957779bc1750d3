// Package measure does with columns what a suite is about, and takes the time.
package measure

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/remotegpu/remotegpu/test/bench/columns"
	"github.com/remotegpu/remotegpu/test/bench/names"
	"github.com/remotegpu/remotegpu/test/bench/netbench"
	"github.com/remotegpu/remotegpu/test/bench/report"
)

// Options are how to measure.
type Options struct {
	Runs   int           // rounds of Life
	Warmup int           // rounds before, not counted
	Pause  time.Duration // before each step, for the kernel to clean up after the one before
	Lists  int           // list calls per row
	Bursts int           // rounds of Parallel
	Burst  int           // containers that a burst makes
	Many   int           // containers of Idle, and that log at once
	Idle   time.Duration // what the times of idle are multiples of
	Deaths int           // samples of Events
	Floods int           // samples of Logs with one container
	Flood  int           // MiB that it writes
	Names  names.Options // of DNS
	Scale  []int         // how many containers List has, ascending
	Rounds int           // samples of Ports, Firewall and Packets
	Ports  int           // that each of them finds

	Mappings     int // published ports of Firewall and Packets
	Environments int // of Packets
	Connects     int // connections of each row and round of Packets
}

// Columns are the columns that a suite can measure, of those asked for.
func Columns(suite report.SuiteName, asked []string) []string {
	if of := netbench.Columns(suite); of != nil {
		if suite == report.Packets {
			of = append(of, Peers(asked)...)
		}
		return of
	}
	if Bare(suite) {
		return []string{columns.RemoteGPU, report.Naive}
	}
	var chosen []string
	for _, name := range asked {
		if suite == report.Life || columns.IsComplete(name) {
			chosen = append(chosen, name)
		}
	}
	return chosen
}

// Peers are the other products with a daemon among the columns asked for.
func Peers(asked []string) (peers []string) {
	for _, name := range asked {
		if columns.IsPeer(name) {
			peers = append(peers, name)
		}
	}
	return peers
}

// Bare says whether a suite makes no containers itself, so that its columns need
// not be started.
func Bare(suite report.SuiteName) bool {
	return suite == report.Ports || netbench.Columns(suite) != nil
}

// Alone says whether each column of a suite needs a machine of its own: what
// others hold would count, or would not fit beside it.
func Alone(suite report.SuiteName) bool { return suite == report.Idle || suite == report.List }

// Title says what a suite does.
func (o *Options) Title(suite report.SuiteName) string {
	switch suite {
	case report.Life:
		return fmt.Sprintf("one container after another, interleaved, %d runs after %d for warming up; medians in ms (min–max)", o.Runs, o.Warmup)
	case report.List:
		return fmt.Sprintf("one call, with so many containers running; %d calls; medians in ms (min–max)", o.Lists)
	case report.Parallel:
		return fmt.Sprintf("%d creates, then %d stops and deletes, so many at once, interleaved, %d rounds; medians of the whole in ms (min–max)",
			o.Burst, o.Burst, o.Bursts)
	case report.Idle:
		return fmt.Sprintf("what the daemons and their helpers use that are not in containers, with 0 and %d containers that do nothing; CPU over %s and %s",
			o.Many, emptyTimes*o.Idle, manyTimes*o.Idle)
	case report.Events:
		return fmt.Sprintf("from the end of a process until the API's stream tells of it; %d times; ms", o.Deaths)
	case report.Ports:
		return fmt.Sprintf("%d host ports found and held while other programs have some, interleaved, %d rounds; medians of the whole in ms (min–max)", o.Ports, o.Rounds)
	case report.DNS:
		return fmt.Sprintf("1000 names; server on one CPU, dnsperf on another; %d interleaved rounds of %s; p99 at 5000 questions a second; medians (min–max)",
			o.Names.Rounds, o.Names.Time)
	case report.Firewall:
		return fmt.Sprintf("rules of %d published ports on both backends, in turns, %d rounds; what is appended one by one is taken from 600; "+
			"connections refused of %d or more while all rules are rewritten; medians in ms (min–max)", o.Mappings, o.Rounds, 10*o.Connects)
	case report.Packets:
		return fmt.Sprintf("%d published ports of %d environments; time of a connection, in turns of 100, on one CPU; "+
			"%d connections in each of %d rounds; medians of the rounds' medians (min–max)", o.Mappings, o.Environments, o.Connects, o.Rounds)
	case report.Logs:
		return fmt.Sprintf("containers that write lines of %d bytes: one all it can, one 50 MB/s, %d at once; medians (min–max)", lineLength, o.Many)
	}
	return ""
}

// measurement is one suite at work.
type measurement struct {
	Options
	columns []columns.Column
	results map[string]*report.Column
	say     func(string)
}

// Run measures the columns, which have been started, and fills in results,
// which has an entry for each of them. A column that fails is left out from
// then on.
func Run(ctx context.Context, suite report.SuiteName, options Options, cols []columns.Column, results map[string]*report.Column, say func(string)) error {
	m := &measurement{Options: options, columns: cols, results: results, say: say}
	switch suite {
	case report.Life:
		return m.lives(ctx)
	case report.List:
		return m.lists(ctx)
	case report.Parallel:
		return m.bursts(ctx)
	case report.Idle:
		return m.idle(ctx)
	case report.Events:
		return m.events(ctx)
	case report.Logs:
		return m.logs(ctx)
	case report.Ports, report.Firewall, report.Packets: // they are bare
	case report.DNS: // it has no containers: names.Compare does it
	}
	return fmt.Errorf("no suite %q", suite)
}

// step does one thing with a column after the pause, unless it has failed
// before, and notes when it fails. The error is that of the whole run.
func (m *measurement) step(ctx context.Context, column columns.Column, do func(result *report.Column) error) error {
	result := m.results[column.Name()]
	if result.Failure != "" {
		return nil
	}
	if err := pause(ctx, m.Pause); err != nil {
		return err
	}
	if err := do(result); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("measure: %w", context.Cause(ctx))
		}
		result.Failure = err.Error()
		m.say(fmt.Sprintf("%s failed: %v\n%s", column.Name(), err, column.Tail()))
	}
	return nil
}

// complete does one thing with each column, one after the other.
func (m *measurement) complete(ctx context.Context, do func(column columns.Complete, result *report.Column) error) error {
	for _, column := range m.columns {
		all, ok := column.(columns.Complete)
		if !ok {
			continue
		}
		if err := m.step(ctx, column, func(result *report.Column) error { return do(all, result) }); err != nil {
			return err
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return fmt.Errorf("measure: %w", context.Cause(ctx))
	case <-time.After(d):
		return nil
	}
}

// createMany makes n containers, so many at once.
func createMany(ctx context.Context, column columns.Column, prefix string, n, atOnce int) ([]*columns.Instance, error) {
	made := make([]*columns.Instance, n)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i := range n {
		group.Go(func() (err error) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if made[i], err = column.Create(ctx, prefix+"-"+strconv.Itoa(i)); err != nil {
				return fmt.Errorf("create: %w", err)
			}
			return nil
		})
	}
	return made, group.Wait()
}

// removeMany removes containers, so many at once.
func removeMany(ctx context.Context, column columns.Column, instances []*columns.Instance, atOnce int) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, instance := range instances {
		group.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := column.Remove(ctx, instance); err != nil {
				return fmt.Errorf("stop and delete: %w", err)
			}
			return nil
		})
	}
	return group.Wait()
}
