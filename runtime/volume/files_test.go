package volume_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/rootfs"
)

func TestWithRoot(t *testing.T) {
	m, config := newManager(t)
	ctx := t.Context()
	if _, err := m.Create(ctx, "data"); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	writer := tar.NewWriter(&archive)
	if err := errors.Join(writer.WriteHeader(&tar.Header{Name: "dir/empty", Typeflag: tar.TypeReg, Mode: 0o600}), writer.Close()); err != nil {
		t.Fatal(err)
	}
	err := m.WithRoot(ctx, "data", func(ctx context.Context, root *rootfs.Root) error {
		p := problem.Of(m.Delete(ctx, "data", unused))
		if p == nil || p.Reason != problem.VolumeInUse || p.Hint == "" {
			t.Errorf("delete meanwhile: %v, want VOLUME_IN_USE with a hint", p)
		}
		_, err := root.Extract(ctx, "/", &archive, rootfs.Extraction{UID: os.Getuid(), GID: os.Getgid()})
		return err
	})
	if err != nil {
		t.Errorf("extract: %v", err)
	}
	if _, err := os.Stat(filepath.Join(config.StateDir, "volumes/data/data/dir/empty")); err != nil {
		t.Error(err)
	}
	broken := errors.New("broken")
	if err := m.WithRoot(ctx, "data", func(context.Context, *rootfs.Root) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("%v, want the error of use", err)
	}
	for _, name := range []string{"absent", "../data", ".data", ""} {
		err := m.WithRoot(ctx, name, func(context.Context, *rootfs.Root) error { t.Error("it was let in"); return nil })
		wantReason(t, name, err, problem.VolumeNotFound)
	}
	if err := m.Delete(ctx, "data", unused); err != nil {
		t.Errorf("delete afterwards: %v", err)
	}
}
