package images_test

import (
	"bytes"
	"io/fs"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/images"
)

func TestSources(t *testing.T) {
	if !slices.Contains(images.Sources(), images.DesktopBase) {
		t.Fatalf("sources are %v", images.Sources())
	}
	for _, name := range []string{"", ".", "..", "nothing", "desktop-base/Dockerfile"} {
		if _, err := images.Source(name); !errdefs.IsNotFound(err) {
			t.Errorf("source %q: %v, want not found", name, err)
		}
	}
	for _, name := range images.Sources() {
		source, err := images.Source(name)
		if err != nil {
			t.Fatal(err)
		}
		dockerfile, err := fs.ReadFile(source, "Dockerfile")
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(dockerfile, []byte("\nARG BASE=")) || bytes.Contains(dockerfile, []byte("# syntax=")) {
			t.Errorf("%s: its Dockerfile must take BASE and no frontend from a registry", name)
		}
	}
}

// Scripts are what begins with "#!": everything else is copied without the
// permission to execute, so a script that lost its first line would be dead.
func TestScripts(t *testing.T) {
	source, err := images.Source(images.DesktopBase)
	if err != nil {
		t.Fatal(err)
	}
	err = fs.WalkDir(source, "rootfs", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := fs.ReadFile(source, path)
		if err != nil {
			return err
		}
		script := strings.HasSuffix(path, "/run") || strings.HasPrefix(path, "rootfs/usr/local/lib/remotegpu/")
		if script != bytes.HasPrefix(content, []byte("#!/bin/sh\n")) {
			t.Errorf("%s: a script begins with #!/bin/sh, other files do not", path)
		}
		if !script {
			return nil
		}
		check := exec.CommandContext(t.Context(), "sh", "-n")
		check.Stdin = bytes.NewReader(content)
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", path, err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
