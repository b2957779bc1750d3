package cgroup_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
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

// Groups with processes are told, deep ones by the name at the top.
func TestInhabited(t *testing.T) {
	testutil.Require(t, testutil.Root)
	path := fmt.Sprintf("/remotegpu-test-inhabited-%d", os.Getpid())
	groups := []string{path + "/one/below", path + "/one", path + "/two", path}
	t.Cleanup(func() {
		for _, group := range groups {
			if err := cgroup.RemoveEmpty(group); err != nil {
				t.Error(err)
			}
		}
	})
	if found, err := cgroup.Inhabited(path); err != nil || len(found) > 0 {
		t.Errorf("without the group: %q, %v", found, err)
	}
	var procs []string
	for _, group := range groups[:3] {
		files, err := cgroup.Make(group)
		if err != nil {
			t.Fatal(err)
		}
		if procs == nil {
			procs = files
		}
	}
	if found, err := cgroup.Inhabited(path); err != nil || len(found) > 0 {
		t.Errorf("of empty groups: %q, %v", found, err)
	}
	sleeper := exec.CommandContext(t.Context(), "sleep", "600")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	for _, file := range procs {
		if err := os.WriteFile(file, []byte(strconv.Itoa(sleeper.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	if found, err := cgroup.Inhabited(path); err != nil || !slices.Equal(found, []string{"one"}) {
		t.Errorf("with a process: %q, %v", found, err)
	}
	if err := sleeper.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = sleeper.Wait()
	if found, err := cgroup.Inhabited(path); err != nil || len(found) > 0 {
		t.Errorf("of groups that are empty again: %q, %v", found, err)
	}
	if _, err := cgroup.Inhabited("/"); err == nil {
		t.Error("what is no path of a group is taken")
	}
}
