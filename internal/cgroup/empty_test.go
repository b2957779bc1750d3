package cgroup_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/remotegpu/remotegpu/internal/cgroup"
	"github.com/remotegpu/remotegpu/internal/testutil"
)

// A group goes from every hierarchy once nothing is in it, and not before.
func TestRemoveEmpty(t *testing.T) {
	testutil.Require(t, testutil.Root)
	path := fmt.Sprintf("/remotegpu-test-empty-%d", os.Getpid())
	everywhere := func() []string {
		found, err := filepath.Glob("/sys/fs/cgroup/*" + path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat("/sys/fs/cgroup" + path); err == nil {
			found = append(found, "/sys/fs/cgroup"+path)
		}
		return found
	}
	t.Cleanup(func() { _, _ = cgroup.RemoveEmpty(path+"/one"), cgroup.RemoveEmpty(path) })
	if _, err := cgroup.Make(path + "/one"); err != nil {
		t.Fatal(err)
	}
	if cgroup.Version() == "v1" {
		for _, controller := range []string{"memory", "devices"} {
			if _, err := os.Stat("/sys/fs/cgroup/" + controller + "/cgroup.procs"); err == nil {
				if err := os.Mkdir("/sys/fs/cgroup/"+controller+path, 0o755); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := cgroup.RemoveEmpty(path); err != nil || len(everywhere()) == 0 || !cgroup.Exists(path+"/one") {
		t.Errorf("with a group in it: %v, %q", err, everywhere())
	}
	for _, each := range []string{path + "/one", path, path} {
		if err := cgroup.RemoveEmpty(each); err != nil {
			t.Error(err)
		}
	}
	if left := everywhere(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if cgroup.RemoveEmpty("/") == nil || cgroup.RemoveEmpty("../x") == nil {
		t.Error("what is no path of a group is taken")
	}
}
