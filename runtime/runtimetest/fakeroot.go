package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/rootfs"
	"github.com/remotegpu/remotegpu/runtime"
)

var _ runtime.Roots = (*FakeEngine)(nil)

// fakeFiles are the files of a container: in a directory, or in memory.
type fakeFiles struct {
	dir    string
	memory map[string]string
}

// newFiles makes the files of a container anew: what it is made from, and with a
// directory those of the image that internal/testutil makes, as far as tests of
// copies need them.
func (e *FakeEngine) newFiles(id string, from map[string]string) (fakeFiles, error) {
	files := fakeFiles{memory: make(map[string]string)}
	if e.Dir == "" {
		maps.Copy(files.memory, from)
		return files, nil
	}
	files.dir = filepath.Join(e.Dir, id)
	if err := os.RemoveAll(files.dir); err != nil {
		return files, err
	}
	for _, dir := range []string{"bin", "etc", "root", "home/app"} {
		if err := os.MkdirAll(filepath.Join(files.dir, dir), 0o755); err != nil {
			return files, err
		}
	}
	files.write("/etc/passwd", "root:x:0:0::/root:\napp:x:1000:1000::/home/app:\n")
	for name, text := range from {
		files.write(name, text)
	}
	return files, nil
}

// all are the plain files, by path.
func (f *fakeFiles) all() map[string]string {
	if f.dir == "" {
		return maps.Clone(f.memory)
	}
	files := make(map[string]string)
	_ = filepath.WalkDir(f.dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			name := strings.TrimPrefix(path, f.dir)
			files[name], _ = f.read(name)
		}
		return nil
	})
	return files
}

func (e *FakeEngine) removeFiles(id string) error {
	if e.Dir == "" {
		return nil
	}
	return os.RemoveAll(filepath.Join(e.Dir, id))
}

func (f *fakeFiles) write(name, text string) {
	if f.dir == "" {
		f.memory[name] = text
		return
	}
	_ = os.MkdirAll(filepath.Dir(filepath.Join(f.dir, name)), 0o755)
	_ = os.WriteFile(filepath.Join(f.dir, name), []byte(text), 0o600)
}

func (f *fakeFiles) remove(name string) {
	delete(f.memory, name)
	if f.dir != "" {
		_ = os.RemoveAll(filepath.Join(f.dir, name))
	}
}

func (f *fakeFiles) read(name string) (string, bool) {
	if f.dir == "" {
		text, found := f.memory[name]
		return text, found
	}
	text, err := os.ReadFile(filepath.Join(f.dir, name))
	return string(text), err == nil
}

// WithRoot opens the directory of a container's files.
func (e *FakeEngine) WithRoot(ctx context.Context, id string, ended bool, use func(ctx context.Context, root *rootfs.Root, live bool) error) error {
	ctx, held, err := e.roots.Enter(ctx, id)
	if err != nil {
		return err
	}
	defer held.Leave()
	var files fakeFiles
	var process *fakeProcess
	if err := e.call("WithRoot", func() error {
		c := e.containers[id]
		if c == nil {
			return fmt.Errorf("open root of container %s: %w", id, errdefs.ErrNotFound)
		}
		if c.files.dir == "" {
			return fmt.Errorf("open root of container %s: its files are in memory: %w", id, errdefs.ErrNotImplemented)
		}
		if files = c.files; c.running() {
			process = c.process
			held.Live()
			return nil
		}
		if !ended {
			return fmt.Errorf("open root of container %s: it has ended: %w", id, errdefs.ErrFailedPrecondition)
		}
		return nil
	}); err != nil {
		return err
	}
	root, err := rootfs.Open(files.dir)
	if err != nil {
		return err
	}
	if process != nil {
		over := make(chan struct{})
		defer close(over)
		go func() {
			select {
			case <-process.done:
				held.Interrupt()
			case <-over:
			}
		}()
	} else if err := e.roots.EndLive(ctx, id); err != nil {
		return errors.Join(err, root.Close())
	}
	err = use(ctx, root, process != nil)
	return errors.Join(err, root.Close())
}
