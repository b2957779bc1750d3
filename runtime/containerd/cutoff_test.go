//nolint:thelper // what is run are tests, and a failure should name their lines
package containerd_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/containerd"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

// A containerd that is killed while content is written into it, and is back at
// once, is told as away: operations are tried again then. What was cut off can
// be done anew and leaves nothing.
func TestContainerdKilledWhileContentIsWritten(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		engine := open(t, d)
		restart := func() { d.Kill(t); d.Start(t) }
		back := func() {
			runtimetest.Eventually(t, "the engine has reconnected", func() bool { _, err := engine.Info(t.Context()); return err == nil })
		}
		t.Run("Pull", func(t *testing.T) {
			registry := testutil.Registry(t)
			ref := registry.Push("held/app", "v1", testutil.TestImage(t, testutil.ImageOptions{Upper: []string{"pulled"}}))
			release := registry.Hold("held/app")
			defer release()
			_, err := engine.Pull(t.Context(), ref, nil, func(at operation.Progress) {
				if states(at.Layers) == "present transferring" { // half of it is here
					restart()
					release()
				}
			})
			wantReason(t, "pull", err, problem.ContainerdDown)
			back()
			if _, err := engine.Pull(t.Context(), ref, nil, nil); err != nil {
				t.Errorf("again: %v", err)
			}
			if err := engine.DeleteImage(t.Context(), ref); err != nil {
				t.Error(err)
			}
		})
		t.Run("Import", func(t *testing.T) {
			const name = "docker.io/remotegpu/cut:latest"
			layout := testutil.TestImage(t, testutil.ImageOptions{Name: name, Upper: []string{"imported"}}).Tar(t)
			half := len(layout) / 2
			cut := sync.OnceFunc(restart)
			_, err := engine.ImportImages(t.Context(), io.MultiReader(bytes.NewReader(layout[:half]), readerFunc(func([]byte) (int, error) {
				cut()
				return 0, io.EOF
			}), bytes.NewReader(layout[half:])), "")
			wantReason(t, "import", err, problem.ContainerdDown)
			back()
			if _, err := engine.ImportImages(t.Context(), bytes.NewReader(layout), ""); err != nil {
				t.Errorf("again: %v", err)
			}
			if err := engine.DeleteImage(t.Context(), name); err != nil {
				t.Error(err)
			}
		})
		t.Run("Snapshot", func(t *testing.T) { cutSnapshot(t, d, engine, restart, back) })
		if left := leftovers(t, d); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
}

// cutSnapshot: a snapshot of what runs, and its export.
func cutSnapshot(t *testing.T, d *testutil.ContainerdDaemon, engine *containerd.Engine, restart, back func()) {
	one := runtime.Container{ID: "one", Image: testutil.ImageName, NetNS: netNS(t, d)()}
	for try := 1; !cutCopy(t, d, engine, one, restart, back); try++ {
		if try == 3 {
			t.Fatal("containerd has given the shim up each time")
		}
	}
	copied, err := engine.CopyLayer(t.Context(), "one", "cut", nil)
	if err != nil {
		t.Fatalf("copy again: %v", err)
	}
	export := runtime.Export{Snapshot: "cut", Reference: "docker.io/test/cut:v1", Base: copied.Base, Created: time.Now()}
	failed := make(chan error, 1)
	go func() {
		_, err := engine.ExportSnapshot(t.Context(), export, nil)
		failed <- err
	}()
	runtimetest.Eventually(t, "a part of the layer is written", func() bool { return ingested(t, d) > 1<<20 })
	restart()
	wantReason(t, "export", <-failed, problem.ContainerdDown)
	back()
	if _, err := engine.ExportSnapshot(t.Context(), export, nil); err != nil {
		t.Errorf("export again: %v", err)
	}
	if err := errors.Join(engine.DeleteImage(t.Context(), export.Reference), engine.Delete(t.Context(), "one"), engine.RemoveSnapshot(t.Context(), "cut")); err != nil {
		t.Error(err)
	}
}

// loadTimeout is how long a containerd that starts waits for a shim
// (io.containerd.timeout.shim.load) before it gives that up and ends what it runs.
const loadTimeout = 5 * time.Second

// cutCopy has the copy of a running container's layer cut off. It is false when
// there is no such container any more because containerd gave its shim up, which
// takes it loadTimeout.
func cutCopy(t *testing.T, d *testutil.ContainerdDaemon, engine *containerd.Engine, one runtime.Container, restart, back func()) bool {
	before := givenUp(t, d)
	start(t, engine, one)
	large := make([]byte, 64<<20)
	if _, err := rand.Read(large); err != nil { // what does not get smaller
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root(t, engine, "one"), "large"), large, 0o600); err != nil {
		t.Fatal(err)
	}
	var took time.Duration
	cut := sync.OnceFunc(func() {
		begin := time.Now()
		restart()
		took = time.Since(begin)
	})
	_, err := engine.CopyLayer(t.Context(), "one", "cut", func(at operation.Progress) {
		if at.Step == "copying" && at.Done > 0 {
			cut()
		}
	})
	wantReason(t, "copy", err, problem.ContainerdDown)
	back()
	status, err := engine.Status(t.Context(), "one")
	if err == nil && !status.Running && took >= loadTimeout && givenUp(t, d) > before {
		t.Logf("containerd gave the shim up: it started for %s", took)
		if err := engine.Delete(t.Context(), "one"); err != nil {
			t.Fatal(err)
		}
		return false
	}
	if err != nil || !status.Running || status.Paused {
		t.Errorf("status %+v, %v", status, err)
	}
	return true
}

// givenUp is of how many shims containerd says that they are dead.
func givenUp(t *testing.T, d *testutil.ContainerdDaemon) int {
	t.Helper()
	log, err := os.ReadFile(filepath.Join(d.Dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(log, []byte("cleaning up dead shim"))
}

// ingested is how many bytes of content are not committed yet.
func ingested(t *testing.T, d *testutil.ContainerdDaemon) (size int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(d.Dir, "*", "io.containerd.content.v1.content", "ingest", "*", "data"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if info, err := os.Stat(file); err == nil { // it may have been committed just now
			size += info.Size()
		}
	}
	return size
}
