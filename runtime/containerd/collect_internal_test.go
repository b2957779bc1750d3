package containerd

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// What is removed is gathered, collections leave containerd the most of the
// time, one that fails is repeated, and at rest there is none.
func TestCollector(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var (
			mu     sync.Mutex
			began  []time.Duration
			fails  bool
			failed int
		)
		start := time.Now()
		c := newCollector(func(context.Context) error {
			mu.Lock()
			began = append(began, time.Since(start))
			mu.Unlock()
			time.Sleep(2 * time.Second)
			mu.Lock()
			defer mu.Unlock()
			if fails {
				return errors.New("containerd is away")
			}
			return nil
		}, func(context.Context, error) { mu.Lock(); failed++; mu.Unlock() })
		ask := func(times ...time.Duration) {
			for _, at := range times {
				time.Sleep(time.Until(start.Add(at)))
				c.soon(t.Context())
			}
		}
		expect := func(by time.Duration, want ...time.Duration) {
			t.Helper()
			time.Sleep(time.Until(start.Add(by)))
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(began) != len(want) {
				t.Fatalf("after %v: collections at %v, want %v", by, began, want)
			}
			for i := range want {
				if began[i] != want[i] {
					t.Errorf("collections at %v, want %v", began, want)
				}
			}
		}
		set := func(value bool) { mu.Lock(); fails = value; mu.Unlock() }
		const s = time.Second
		ask(0, s/2, s*9/10)
		expect(2*s, s)
		ask(2*s, 5*s) // while one runs, which may not see it, and after it
		expect(200*s, s, 43*s)
		set(true)
		ask(200 * s)
		expect(280*s, s, 43*s, 201*s, 263*s)
		set(false)
		expect(600*s, s, 43*s, 201*s, 263*s, 325*s)
		ask(600 * s)
		c.close() // before the second is over
		c.close()
		ask(601 * s)
		expect(700*s, s, 43*s, 201*s, 263*s, 325*s)
		if failed != 1 {
			t.Errorf("told %d times of a containerd that was away", failed)
		}
	})
}

// A collection that the end of the daemon breaks off leaves no lease behind,
// wherever it is.
func TestCollectionThatIsBrokenOff(t *testing.T) {
	for _, need := range []testutil.Need{testutil.Containerd, testutil.Containerd2} {
		t.Run(string(need), func(t *testing.T) {
			d := testutil.StartContainerd(t, need)
			e, err := New(Config{Address: d.Address, Namespace: d.Namespace, CgroupParent: d.Cgroup, FIFODir: filepath.Join(d.Dir, "fifo")})
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			broken := 0
			for i := range 200 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*50*time.Microsecond)
				if err := e.collect(ctx); err != nil {
					broken++
				}
				cancel()
			}
			left, err := e.client.LeasesService().List(e.namespaced(t.Context()))
			if err != nil || len(left) > 0 || broken == 0 {
				t.Errorf("%d collections were broken off; leases %v, %v", broken, left, err)
			}
		})
	}
}
