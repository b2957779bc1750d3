//nolint:thelper // these are tests, and a failure should name their lines
package runtimetest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/rootfs"
	"github.com/remotegpu/remotegpu/runtime"
)

func copyTests() []engineTest {
	return []engineTest{
		{"CopyRunning", testCopyRunning},
		{"CopyStopped", testCopyStopped},
		{"CopyRefuses", testCopyRefuses},
		{"CopyEnds", testCopyEnds},
		{"CopyAndSnapshot", testCopyAndSnapshot},
	}
}

func (s *suite) roots(t *testing.T) runtime.Roots {
	t.Helper()
	roots, is := s.Engine.(runtime.Roots)
	if !is {
		t.Fatalf("%T is no runtime.Roots", s.Engine)
	}
	return roots
}

// Archive is a tar stream of plain files, by name.
func Archive(tb testing.TB, files map[string]string) []byte {
	tb.Helper()
	var buffer bytes.Buffer
	writer := tar.NewWriter(&buffer)
	for name, text := range files {
		err := writer.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg})
		if _, again := io.WriteString(writer, text); err != nil || again != nil {
			tb.Fatal(err, again)
		}
	}
	if err := writer.Close(); err != nil {
		tb.Fatal(err)
	}
	return buffer.Bytes()
}

// Unarchive is what plain files in a tar stream hold, by name.
func Unarchive(tb testing.TB, archive io.Reader) map[string]string {
	tb.Helper()
	files := make(map[string]string)
	for reader := tar.NewReader(archive); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			tb.Fatal(err)
		}
		text, err := io.ReadAll(reader)
		if err != nil {
			tb.Fatal(err)
		}
		if header.Typeflag == tar.TypeReg {
			files[header.Name] = string(text)
		}
	}
}

func (s *suite) put(t *testing.T, id string, live bool, files map[string]string) {
	t.Helper()
	err := s.roots(t).WithRoot(t.Context(), id, !live, func(ctx context.Context, root *rootfs.Root, is bool) error {
		if is != live {
			t.Errorf("live: %t, want %t", is, live)
		}
		_, err := root.Extract(ctx, "/home/app", bytes.NewReader(Archive(t, files)), rootfs.Extraction{UID: os.Getuid(), GID: os.Getgid()})
		return err
	})
	if err != nil {
		t.Fatalf("copy into %s: %v", id, err)
	}
}

func (s *suite) take(t *testing.T, id string, live bool, name string) map[string]string {
	t.Helper()
	var out bytes.Buffer
	err := s.roots(t).WithRoot(t.Context(), id, !live, func(ctx context.Context, root *rootfs.Root, _ bool) error {
		_, err := root.Pack(ctx, name, true, &out, func(rootfs.Info) error { return nil })
		return err
	})
	if err != nil {
		t.Fatalf("copy out of %s: %v", id, err)
	}
	return Unarchive(t, &out)
}

func testCopyRunning(t *testing.T, s *suite) {
	c := s.start(t, s.container())
	s.run(t, c.ID, "write", "/home/app/inside", "from inside")
	s.put(t, c.ID, true, map[string]string{"a": "from outside", "new/b": "b"})
	if got := s.run(t, c.ID, "cat", "/home/app/a", "/home/app/new/b"); got != "from outsideb" {
		t.Errorf("inside there is %q", got)
	}
	files := s.take(t, c.ID, true, "/home/app")
	if len(files) != 3 || files["app/inside"] != "from inside" || files["app/new/b"] != "b" {
		t.Errorf("out came %q", files)
	}
}

// A layer is written and read without a process, whether its task was removed
// or not, and the next process sees what was written.
func testCopyStopped(t *testing.T, s *suite) {
	c := s.start(t, s.container())
	s.run(t, c.ID, "write", "/home/app/a", "first")
	if _, err := s.Engine.Stop(t.Context(), c.ID, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	if files := s.take(t, c.ID, false, "/home/app/a"); files["a"] != "first" {
		t.Errorf("out came %q", files)
	}
	s.put(t, c.ID, false, map[string]string{"a": "second"})
	if _, err := s.Engine.Start(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if got := s.run(t, c.ID, "cat", "/home/app/a"); got != "second" {
		t.Errorf("inside there is %q", got)
	}
	dead := s.start(t, s.container("write", "/home/app/a", "dying"))
	s.ended(t, dead.ID)
	s.put(t, dead.ID, false, map[string]string{"b": "b"})
	if files := s.take(t, dead.ID, false, "/home/app"); files["app/a"] != "dying" || files["app/b"] != "b" {
		t.Errorf("out came %q", files)
	}
}

func testCopyRefuses(t *testing.T, s *suite) {
	use := func(context.Context, *rootfs.Root, bool) error { t.Error("it was let in"); return nil }
	if err := s.roots(t).WithRoot(t.Context(), "absent", true, use); !errdefs.IsNotFound(err) {
		t.Errorf("absent: %v, want NotFound", err)
	}
	c := s.create(t, s.container())
	if err := s.roots(t).WithRoot(t.Context(), c.ID, false, use); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("nothing runs: %v, want FailedPrecondition", err)
	}
	wanted := errors.New("wanted")
	if err := s.roots(t).WithRoot(t.Context(), c.ID, true, func(context.Context, *rootfs.Root, bool) error { return wanted }); !errors.Is(err, wanted) {
		t.Errorf("%v, want the error of use", err)
	}
}

// Whoever copies is ended by what changes the container, and waited for.
func testCopyEnds(t *testing.T, s *suite) {
	c := s.start(t, s.container())
	for _, end := range []struct {
		name string
		live bool
		do   func() error
	}{
		{"stop", true, func() error { _, err := s.Engine.Stop(t.Context(), c.ID, 30*time.Second); return err }},
		{"start", false, func() error { _, err := s.Engine.Start(t.Context(), c); return err }},
		{"delete", true, func() error { return s.Engine.Delete(t.Context(), c.ID) }},
	} {
		entered, left := make(chan struct{}), make(chan error)
		for range 2 {
			go func() {
				left <- s.roots(t).WithRoot(t.Context(), c.ID, !end.live, func(ctx context.Context, _ *rootfs.Root, live bool) error {
					if live != end.live {
						t.Errorf("%s: live %t", end.name, live)
					}
					entered <- struct{}{}
					<-ctx.Done()
					return context.Cause(ctx)
				})
			}()
			select {
			case <-entered:
			case err := <-left:
				t.Fatalf("%s: %v", end.name, err)
			}
		}
		if err := end.do(); err != nil {
			t.Errorf("%s: %v", end.name, err)
		}
		for range 2 {
			wantReason(t, end.name, <-left, problem.CopyInterrupted)
		}
	}
}

// A snapshot, and going back to it, end copies; copies see the layer that is
// there then.
func testCopyAndSnapshot(t *testing.T, s *suite) {
	snapshotter, is := s.Engine.(runtime.Snapshotter)
	if !is {
		t.Fatalf("%T is no runtime.Snapshotter", s.Engine)
	}
	c := s.start(t, s.container())
	s.put(t, c.ID, true, map[string]string{"kept": "first"})
	if _, err := s.Engine.Stop(t.Context(), c.ID, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	snapshot := s.id + "-snapshot"
	for _, change := range []func() error{
		func() error { _, err := snapshotter.CommitLayer(t.Context(), c.ID, snapshot); return err },
		func() error { return snapshotter.ResetLayer(t.Context(), c.ID, snapshot) },
	} {
		entered, left := make(chan struct{}), make(chan error, 1)
		go func() {
			left <- s.roots(t).WithRoot(t.Context(), c.ID, true, func(ctx context.Context, _ *rootfs.Root, _ bool) error {
				close(entered)
				<-ctx.Done()
				return context.Cause(ctx)
			})
		}()
		select {
		case <-entered:
		case err := <-left:
			t.Fatal(err)
		}
		if err := change(); err != nil {
			t.Error(err)
		}
		wantReason(t, "a change of the layer", <-left, problem.CopyInterrupted)
		if files := s.take(t, c.ID, false, "/home/app"); files["app/kept"] != "first" || files["app/later"] != "" {
			t.Errorf("out came %q", files)
		}
		s.put(t, c.ID, false, map[string]string{"later": "second"})
	}
	if _, err := s.Engine.Start(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if got := s.run(t, c.ID, "cat", "/home/app/kept", "/home/app/later"); got != "firstsecond" {
		t.Errorf("inside there is %q", got)
	}
	if err := s.Engine.Delete(t.Context(), c.ID); err != nil {
		t.Error(err)
	}
	if err := snapshotter.RemoveSnapshot(t.Context(), snapshot); err != nil {
		t.Error(err)
	}
}
