package containerd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
)

// Commands that begin while a snapshot pauses and resumes their container, at
// whatever moment, run whole, or are told that it stands still.
func TestCommandsBesideSnapshots(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) { //nolint:thelper // it is the test
		engine := open(t, d)
		c := runtime.Container{ID: "one", Image: testutil.ImageName, NetNS: netNS(t, d)()}
		start(t, engine, c)
		ctx, cancel := context.WithCancel(t.Context())
		var working sync.WaitGroup
		var ran, paused [2]int
		for i, command := range []func() error{
			func() error {
				_, err := engine.Run(t.Context(), c.ID, runtime.Command{Argv: []string{"testprog", "true"}})
				return err
			},
			func() error {
				_, err := engine.Exec(t.Context(), c.ID, runtime.Process{Argv: []string{"testprog", "true"}}, runtime.Streams{Stdout: io.Discard, Stderr: io.Discard})
				return err
			},
		} {
			working.Go(func() {
				for ctx.Err() == nil {
					switch err := command(); {
					case err == nil:
						ran[i]++
					case errors.Is(err, runtime.ErrPaused):
						paused[i]++
					default:
						t.Errorf("command %d: %v", i, err)
						return
					}
				}
			})
		}
		for i := range 5 {
			if _, err := engine.CopyLayer(t.Context(), c.ID, fmt.Sprintf("s%d", i), nil); err != nil {
				t.Errorf("snapshot %d: %v", i, err)
			}
		}
		cancel()
		working.Wait()
		t.Logf("ran %d, were told to wait %d", ran, paused)
		for i := range 5 {
			if err := engine.RemoveSnapshot(t.Context(), fmt.Sprintf("s%d", i)); err != nil {
				t.Error(err)
			}
		}
		if err := engine.Delete(t.Context(), c.ID); err != nil {
			t.Error(err)
		}
		if left := leftovers(t, d); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
}
