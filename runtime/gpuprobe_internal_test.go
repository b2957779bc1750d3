package runtime

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/gputest"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// White-box: who asks a driver that hangs is told at once what the last one was
// told, for a while; a failure that came at once is asked for again.
func TestFailedProbeIsKeptForAWhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		driver, calls, takes := gputest.NewDriver(), 0, time.Duration(0)
		driver.Do = func(string, func() error) error {
			calls++
			time.Sleep(takes)
			return errors.New("broken")
		}
		m := &Manager{cfg: Config{GPUs: driver}, conditions: map[problem.Reason]Condition{}}
		ask := func(want int) {
			t.Helper()
			_, err := m.GPUInventory(t.Context(), 0)
			if p := problem.Of(err); p == nil || p.Reason != problem.GPUUnavailable || calls != want {
				t.Errorf("got %v after %d calls, want %d", err, calls, want)
			}
		}
		ask(1)
		takes = slowProbe
		ask(2)
		ask(2)
		time.Sleep(probePause)
		ask(3)
	})
}

// noBooks is a store in which no GPU is anybody's.
type noBooks struct{ Store }

func (noBooks) GPUBooks(context.Context) (gpu.Books, error) { return gpu.Books{}, nil }

// White-box: where no administrator made partitions none is missing, and the
// software of GPUs is not asked.
func TestPartitionsNobodyMadeAreNotLookedFor(t *testing.T) {
	t.Parallel()
	driver, calls := gputest.NewDriver(), 0
	driver.Do = func(_ string, work func() error) error {
		calls++
		return work()
	}
	m := &Manager{cfg: Config{GPUs: driver, Store: noBooks{}}, conditions: map[problem.Reason]Condition{}}
	if err := m.remakePartitions(t.Context()); err != nil || calls != 0 {
		t.Errorf("%v, after %d calls", err, calls)
	}
}
