package volume

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// trashPrefix begins the names of volumes that are being removed. Drafts of
// new ones are "." and a volume's name, in which there is no second dot.
const trashPrefix = "..deleted-"

// Info is a named volume.
type Info struct {
	Name      string
	CreatedAt time.Time
}

// Create makes an empty volume. VOLUME_NAME_INVALID, VOLUME_EXISTS.
func (m *Manager) Create(ctx context.Context, name string) (Info, error) {
	if err := checkName(name); err != nil {
		return Info{}, err
	}
	unlock, err := m.locks.Lock(ctx, "volume/"+name)
	if err != nil {
		return Info{}, fmt.Errorf("create volume %s: %w", name, err)
	}
	defer unlock()
	created, err := m.makeVolume(name)
	if err != nil {
		return Info{}, fmt.Errorf("create volume %s: %w", name, err)
	}
	if !created {
		return Info{}, problem.New(problem.VolumeExists, "a volume called %q exists", name).WithField("name").
			WithHint("choose another name, or use that one")
	}
	return m.info(name)
}

// checkName is checkVolumeName for volumes that are asked for by themselves.
func checkName(name string) error {
	p := checkVolumeName(name)
	if p == nil {
		return nil
	}
	return problem.New(problem.VolumeNameInvalid, "%s", p.Message).WithField("name").
		WithHint("use at most 63 of a-z, 0-9 and -, with a letter or digit at both ends")
}

// Get tells about a volume, VOLUME_NOT_FOUND.
func (m *Manager) Get(_ context.Context, name string) (Info, error) {
	if checkVolumeName(name) != nil { // there cannot be one
		return Info{}, notFound(name)
	}
	return m.info(name)
}

func notFound(name string) error {
	return problem.New(problem.VolumeNotFound, "there is no volume %q", name).WithField("name").
		WithHint("list them with: remotegpu volume ls")
}

// info looks at a volume's directory, which gets its content once, with its
// name: its time of change is that of its making.
func (m *Manager) info(name string) (Info, error) {
	dir := filepath.Join(m.volumesDir(), name)
	stat, err := os.Lstat(dir)
	if err == nil {
		// Without it a crash interrupted the removal of an unused volume.
		_, err = os.Lstat(filepath.Join(dir, "data"))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return Info{}, notFound(name)
	}
	if err != nil {
		return Info{}, fmt.Errorf("inspect volume %s: %w", name, err)
	}
	return Info{Name: name, CreatedAt: stat.ModTime()}, nil
}

// List tells about all volumes, by name.
func (m *Manager) List(ctx context.Context) ([]Info, error) {
	entries, err := os.ReadDir(m.volumesDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	var all []Info
	for _, entry := range entries {
		if !entry.IsDir() || checkVolumeName(entry.Name()) != nil {
			continue
		}
		info, err := m.Get(ctx, entry.Name())
		switch {
		case err == nil:
			all = append(all, info)
		case problem.Of(err).Reason != problem.VolumeNotFound:
			return nil, err
		}
	}
	return all, nil
}

// Delete removes a volume and its content. usedBy is asked for its users while
// nobody can stage the volume; with any it stays. VOLUME_NOT_FOUND,
// VOLUME_IN_USE.
//
// The volume is gone at once, by a rename; removing its files may take a
// while. What a crash or an error leaves of them Deleted tells of, and
// RemoveDeleted removes.
func (m *Manager) Delete(ctx context.Context, name string, usedBy func(context.Context) ([]string, error)) error {
	trash, err := m.discard(ctx, name, usedBy)
	if err != nil {
		return err
	}
	defer m.removing.end(trash)
	// The volume has gone: whoever leaves now still wants its files gone.
	if err := m.remove(context.WithoutCancel(ctx), trash); err != nil {
		return problem.New(problem.Of(err).Reason, "volume %s is deleted, and not all of its files are removed", name).WithCause(err).
			WithHint("the volume is gone, and the node goes on removing its files: see remotegpu node reconcile --dry-run")
	}
	return nil
}

// discard renames a volume that nobody uses, for the caller to remove. Whoever
// stages it afterwards gets a new one.
func (m *Manager) discard(ctx context.Context, name string, usedBy func(context.Context) ([]string, error)) (trash string, err error) {
	if checkVolumeName(name) != nil {
		return "", notFound(name)
	}
	unlock, err := m.locks.Lock(ctx, "volume/"+name)
	if err != nil {
		return "", fmt.Errorf("delete volume %s: %w", name, err)
	}
	defer unlock()
	if _, err := m.info(name); err != nil {
		return "", err
	}
	if m.copied.busy(name) {
		return "", problem.New(problem.VolumeInUse, "files are copied into or out of volume %q", name).WithField("name").
			WithHint("wait until that is done, or end it")
	}
	users, err := usedBy(ctx)
	if err != nil {
		return "", fmt.Errorf("look for users of volume %s: %w", name, err)
	}
	if len(users) > 0 {
		return "", problem.New(problem.VolumeInUse, "volume %q is mounted by %s", name, strings.Join(users, ", ")).WithField("name").
			WithHint("delete those environments first")
	}
	trash = filepath.Join(m.volumesDir(), trashPrefix+rand.Text())
	m.removing.begin(trash)
	if err := os.Rename(filepath.Join(m.volumesDir(), name), trash); err != nil {
		m.removing.end(trash)
		return "", fmt.Errorf("delete volume %s: %w", name, err)
	}
	return trash, nil
}

// Deleted tells where the files are of volumes that were deleted, as a crash or
// an error left them: those that nobody removes now.
func (m *Manager) Deleted(context.Context) ([]string, error) {
	entries, err := os.ReadDir(m.volumesDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list deleted volumes: %w", err)
	}
	var left []string
	for _, entry := range entries {
		path := filepath.Join(m.volumesDir(), entry.Name())
		if strings.HasPrefix(entry.Name(), trashPrefix) && !m.removing.has(path) {
			left = append(left, path)
		}
	}
	return left, nil
}

// RemoveDeleted removes what Deleted tells of, until ctx ends. It may run beside
// Delete and itself.
func (m *Manager) RemoveDeleted(ctx context.Context) error {
	left, err := m.Deleted(ctx)
	if err != nil {
		return err
	}
	left = slices.DeleteFunc(left, func(path string) bool { return !m.removing.begin(path) })
	var errs []error
	for _, path := range left {
		if ctx.Err() == nil {
			errs = append(errs, m.remove(ctx, path))
		}
		m.removing.end(path)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove files of deleted volumes: %w", err)
	}
	return nil
}

// removals are the deleted volumes whose files somebody removes. The zero value is
// ready.
type removals struct {
	mu    sync.Mutex
	paths map[string]bool
}

// begin tells whether the files are the caller's to remove, until end.
func (r *removals) begin(path string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.paths[path] {
		return false
	}
	if r.paths == nil {
		r.paths = make(map[string]bool)
	}
	r.paths[path] = true
	return true
}

func (r *removals) end(path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.paths, path)
}

func (r *removals) has(path string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.paths[path]
}
