package measure

import (
	"context"
	"fmt"
	"time"

	"github.com/remotegpu/remotegpu/test/bench/columns"
	"github.com/remotegpu/remotegpu/test/bench/report"
)

var burstRows = []struct {
	atOnce         int
	create, remove report.Row
}{
	{1, report.Create1, report.Delete1},
	{4, report.Create4, report.Delete4},
	{8, report.Create8, report.Delete8},
}

// bursts makes and removes many containers with more and more callers. The
// daemons with an API of their own, which take longest, are in the first round
// alone.
func (m *measurement) bursts(ctx context.Context) error {
	for round := range m.Bursts {
		for _, row := range burstRows {
			for i := range m.columns {
				column := m.columns[(round+i)%len(m.columns)]
				if round > 0 && columns.IsPeer(column.Name()) {
					continue
				}
				err := m.step(ctx, column, func(result *report.Column) error {
					prefix := fmt.Sprintf("burst-%d-%d", round, row.atOnce)
					start := time.Now()
					made, err := createMany(ctx, column, prefix, m.Burst, row.atOnce)
					if err != nil {
						return err
					}
					result.Add(row.create, time.Since(start))
					for _, instance := range made {
						if err := instance.Host.AwaitBanner(ctx, instance.Port, columns.Banner, portLimit); err != nil {
							return err
						}
					}
					start = time.Now()
					if err := removeMany(ctx, column, made, row.atOnce); err != nil {
						return err
					}
					result.Add(row.remove, time.Since(start))
					return nil
				})
				if err != nil {
					return err
				}
			}
			m.say(fmt.Sprintf("round %d of %d, %d at once: done", round+1, m.Bursts, row.atOnce))
		}
	}
	return nil
}
