package e2e_test

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// fill fills a directory's filesystem up with one file and returns what takes
// it away again.
func fill(t *testing.T, dir string) (empty func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for block := 1 << 20; block >= 512; {
		if _, err = file.Write(make([]byte, block)); errors.Is(err, unix.ENOSPC) {
			block /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
	}
}

// A full disk is told as such, loses nothing but lines of logs, which are
// counted, and is over when there is room again. Environments can be stopped and
// deleted all the same.
func TestFullDisk(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables, usual, testutil.Programs)
	containerd := testutil.StartContainerdOn(t, usual, "128m")
	n := startOn(t, containerd, func(config string) string { return config }, func(*Node) {})
	n.Must(t, "env", "create", "writer", "--image", n.Image, "--", "tick")
	for _, name := range []string{"stopped", "deleted"} {
		n.Must(t, "env", "create", name, "--image", n.Image, "--", "ignore-term")
	}
	registry := testutil.Registry(t)
	big := make([]byte, 24<<20)
	_, _ = rand.Read(big)
	reference := startRegistry(t, n, registry).host + "/team/big:1"
	registry.Push("team/big", "1", testutil.TestImage(t, testutil.ImageOptions{Name: reference, Files: map[string]string{"/etc/big": string(big)}}))

	// An image that is there, and was never unpacked.
	const local = "docker.io/team/local:1"
	path := filepath.Join(t.TempDir(), "local.tar")
	image := testutil.TestImage(t, testutil.ImageOptions{Name: local, Files: map[string]string{"/etc/local": string(big[:12<<20])}})
	if err := os.WriteFile(path, image.Tar(t), 0o600); err != nil {
		t.Fatal(err)
	}
	containerd.Ctr(t, "images", "import", "--no-unpack", path)

	fails := func(args ...string) {
		t.Helper()
		if out, errs, code := n.CLI(t, args...); code == 0 || !strings.Contains(errs, "full") || !strings.Contains(errs, "Try: ") {
			t.Errorf("remotegpu %s on a full disk: exit %d\n%s%s", strings.Join(args, " "), code, out, errs)
		}
	}
	// Nearly full: the database has room, the image has none.
	empty := fill(t, n.Dir)
	if err := os.Truncate(filepath.Join(n.Dir, "filler"), filler(t, n.Dir)-(8<<20)); err != nil {
		t.Fatal(err)
	}
	fails("image", "pull", reference)
	for name, image := range map[string]string{"big": reference, "local": local} {
		fails("env", "create", name, "--image", image)
		if env := n.Get(t, name); env.State != "ENVIRONMENT_STATE_ERROR" || env.Problem == nil || env.Problem.Reason != "DISK_FULL" {
			t.Errorf("created on a full disk: %+v", env)
		}
		n.Must(t, "env", "rm", name)
	}
	// Full to the last byte.
	empty()
	empty = fill(t, n.Dir)
	t.Cleanup(empty)
	fails("env", "create", "other", "--image", n.Image)
	if info := n.Must(t, "node", "info"); !strings.Contains(info, "DISK_FULL") {
		t.Errorf("the node tells nothing of its disk:\n%s", info)
	}
	n.Must(t, "env", "stop", "-t", "0", "stopped")
	if env := n.Get(t, "stopped"); env.State != "ENVIRONMENT_STATE_STOPPED" && env.Problem == nil {
		t.Errorf("stopped on a full disk: %+v", env)
	}
	n.Must(t, "env", "rm", "-f", "-t", "0", "deleted")
	n.Must(t, "env", "rm", "stopped")
	if _, err := os.Stat(filepath.Join(n.Dir, "filler")); err != nil {
		t.Fatal(err)
	}
	if env := n.Get(t, "writer"); env.State != "ENVIRONMENT_STATE_RUNNING" {
		t.Errorf("on a full disk: %+v", env)
	}
	empty() // what was deleted has made room
	empty = fill(t, n.Dir)
	Eventually(t, "lines to be lost", func() bool { // what is open may have a page of room
		last := n.Must(t, "env", "logs", "--tail", "1", "writer")
		time.Sleep(2 * time.Second)
		return n.Must(t, "env", "logs", "--tail", "1", "writer") == last
	})

	empty()
	Eventually(t, "the log to tell of lost lines", func() bool {
		_, errs, _ := n.CLI(t, "env", "logs", "writer")
		return strings.Contains(errs, "lines were lost here: no space left on device")
	})
	Eventually(t, "the database to write again", func() bool { _, _, code := n.CLI(t, "env", "stop", "writer"); return code == 0 })
	n.Must(t, "env", "start", "writer")
	n.Must(t, "env", "create", "big", "--image", reference)
	n.Must(t, "env", "create", "local", "--image", local)
	var list listed
	if err := json.Unmarshal([]byte(n.Must(t, "env", "ls", "-o", "json")), &list); err != nil || len(list.Environments) != 3 {
		t.Errorf("environments: %+v, error %v", list, err)
	}
}

// ext4 counts blocks as free that it gives nobody, root included: a disk on
// which nothing can be written is full all the same, and no longer than that.
func TestFullExt4(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables, usual, testutil.Programs)
	dir := t.TempDir()
	testutil.Ext4(t, dir, 1<<30) // 2 % are more than the most it keeps, 16 MiB
	t.Setenv("TMPDIR", dir)      // what a containerd, and so the node, has its files in
	n := Start(t, usual, "")
	n.Must(t, "env", "create", "before", "--image", n.Image, "--", "tick")
	empty := fill(t, n.Dir)
	t.Cleanup(empty)
	if info := n.Must(t, "node", "info"); !strings.Contains(info, "DISK_FULL") {
		var fs unix.Statfs_t
		err := unix.Statfs(n.Dir, &fs)
		t.Errorf("the node tells nothing of its disk, of which %d KiB count as free (%v):\n%s", int64(fs.Bfree)*fs.Bsize>>10, err, info)
	}
	if out, errs, code := n.CLI(t, "env", "create", "refused", "--image", n.Image); code == 0 || !strings.Contains(errs, "node.state_dir is full") || !strings.Contains(errs, "Try: ") {
		t.Errorf("created on a full disk: exit %d\n%s%s", code, out, errs)
	}
	if out, errs, code := n.CLI(t, "volume", "create", "refused"); code == 0 || !strings.Contains(errs, "is full") || !strings.Contains(errs, "Try: ") {
		t.Errorf("a volume on a full disk: exit %d\n%s%s", code, out, errs)
	}
	empty()
	Eventually(t, "the disk to have room", func() bool { return !strings.Contains(n.Must(t, "node", "info"), "DISK_FULL") })
	n.Must(t, "env", "create", "after", "--image", n.Image, "--", "tick")
}

func filler(t *testing.T, dir string) int64 {
	t.Helper()
	info, err := os.Stat(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}
