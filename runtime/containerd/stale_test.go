package containerd_test

import (
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

// A shim that does not answer while the daemon starts, and that containerd
// therefore does not list, keeps what the daemon before has left in its
// container until it answers.
func TestStaleCommandsOfAShimThatIsSlow(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.Containerd2) // older ones list it
	d := testutil.StartContainerd(t, testutil.Containerd2)
	d.Import(t, testutil.TestImage(t, testutil.ImageOptions{}))
	before := open(t, d)
	pid := start(t, before, runtime.Container{ID: "one", Image: testutil.ImageName, NetNS: netNS(t, d)()})
	holding := make(chan struct{})
	var ended sync.WaitGroup
	defer ended.Wait()
	ended.Go(func() {
		_, _ = before.Exec(t.Context(), "one", runtime.Process{Argv: []string{"testprog", "hold"}}, runtime.Streams{
			Stdout: io.Discard, Stderr: io.Discard, Started: func() error { close(holding); return nil },
		})
	})
	<-holding
	runs := func() bool { return strings.Contains(run(t, before, "ps"), "hold") }
	runtimetest.Eventually(t, "the command to run", runs)

	shim := parent(t, pid)
	if err := syscall.Kill(shim, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	goOn := sync.OnceValue(func() error { return syscall.Kill(shim, syscall.SIGCONT) })
	defer func() { _ = goOn() }()
	next := open(t, d)
	if err := next.RemoveStale(t.Context()); err == nil {
		t.Error("all is said to be removed while a shim does not answer")
	}
	if err := goOn(); err != nil {
		t.Fatal(err)
	}
	if err := next.RemoveStale(t.Context()); err != nil {
		t.Error(err)
	}
	if runs() {
		t.Errorf("left behind: %s", run(t, before, "ps"))
	}
	if err := next.Delete(t.Context(), "one"); err != nil {
		t.Error(err)
	}
	if left := leftovers(t, d); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
