//nolint:thelper // what both runs are tests, and a failure should name their lines
package containerd_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime"
)

// What a deleted container has written leaves the disk soon, also where
// containerd's scheduler, configured as operations.md advises, would take half a
// minute: it is looked for until half of that.
func TestDeleteFreesDisk(t *testing.T) {
	both(t, func(t *testing.T, d *testutil.ContainerdDaemon) {
		config, err := os.OpenFile(filepath.Join(d.Dir, "config.toml"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		// A first collection that is late makes the next ones come later still: none comes by itself.
		_, err = config.WriteString("[plugins.\"io.containerd.gc.v1.scheduler\"]\n  pause_threshold = 0.0002\n  startup_delay = \"10m\"\n")
		if err != nil || config.Close() != nil {
			t.Fatal(err)
		}
		d.Stop(t)
		d.Start(t)
		engine := open(t, d)
		c := runtime.Container{ID: "hog", Image: testutil.ImageName, NetNS: netNS(t, d)()}
		start(t, engine, c)
		command := runtime.Command{Argv: []string{"/bin/testprog", "fill", "/hog", "8"}, OutputLimit: 4096}
		if result, err := engine.Run(t.Context(), c.ID, command); err != nil || result.ExitCode != 0 {
			t.Fatalf("write: %+v, %v", result, err)
		}
		written := func() (found []string) {
			_ = filepath.WalkDir(filepath.Join(d.Dir, "root"), func(path string, entry fs.DirEntry, err error) error {
				if err == nil && entry.Name() == "hog" && entry.Type().IsRegular() {
					found = append(found, path)
				}
				return nil
			})
			return found
		}
		if len(written()) != 1 {
			t.Fatalf("written: %q", written())
		}
		if err := engine.Delete(t.Context(), c.ID); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(12 * time.Second); len(written()) > 0; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("still on the disk: %q", written())
			}
		}
		if left := leftovers(t, d); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
}
