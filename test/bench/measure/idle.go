package measure

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/remotegpu/remotegpu/test/bench/columns"
	"github.com/remotegpu/remotegpu/test/bench/report"
	"github.com/remotegpu/remotegpu/test/bench/sandbox"
)

const (
	// emptyTimes is how many times longer a column without containers is watched:
	// all that it does are collections, which Go forces every two minutes, and a
	// minute sees one of them or none.
	emptyTimes = 8
	// manyTimes is how many times longer one with containers is: their shims collect
	// garbage each half minute, which most of what is used is, and a minute sees once or
	// thrice what it should see twice.
	manyTimes = 5
	// settleTimes is how many times longer is waited before that: our reconciler looks
	// after what was created with two passes, one a minute.
	settleTimes = 3
)

// idle looks at what a column's processes use while nothing happens. It is
// alone in its sandbox, so whatever runs there is the column's.
func (m *measurement) idle(ctx context.Context) error {
	return m.complete(ctx, func(column columns.Complete, result *report.Column) error {
		if err := m.use(ctx, result, report.Memory0, report.CPU0, "0", m.Idle, emptyTimes*m.Idle); err != nil {
			return err
		}
		if _, err := createMany(ctx, column, "idle", m.Many, makers); err != nil {
			return err
		}
		m.say(fmt.Sprintf("%s has %d", column.Name(), m.Many))
		return m.use(ctx, result, report.Memory100, report.CPU100, strconv.Itoa(m.Many), settleTimes*m.Idle, manyTimes*m.Idle)
	})
}

// use samples memory once and CPU over some time of idleness, after another.
func (m *measurement) use(ctx context.Context, result *report.Column, memory, cpu report.Row, with string, settle, watch time.Duration) error {
	// What a start or a create leaves to do, garbage collections included.
	if err := pause(ctx, settle); err != nil {
		return err
	}
	before, err := sandbox.Processes()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := pause(ctx, watch); err != nil {
		return err
	}
	after, err := sandbox.Processes()
	if err != nil {
		return err
	}
	took := time.Since(start)
	var used time.Duration
	var bytes int64
	memories, shares := map[string]float64{}, map[string]float64{}
	for pid, process := range after {
		bytes += process.PSS
		memories[process.Name] += mebibytes(process.PSS)
		// Of one that is new, all of it; of one that has gone, what its parent
		// or the sandbox's first process has counted is not told: it is little.
		more := max(0, process.CPU-before[pid].CPU) // a thread that has ended is not counted any more
		used += more
		shares[process.Name] += 100 * more.Seconds() / took.Seconds()
	}
	result.AddValue(memory, mebibytes(bytes))
	result.AddValue(cpu, 100*used.Seconds()/took.Seconds())
	result.AddParts("MiB with "+with, memories)
	result.AddParts("CPU % with "+with, shares)
	return nil
}

func mebibytes(bytes int64) float64 { return float64(bytes) / (1 << 20) }
