package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/keylock"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// DefaultTmpfsBytes is the size of a tmpfs that names none.
const DefaultTmpfsBytes = 64 << 20

// Config says where mounts come from and where they are staged.
type Config struct {
	// StateDir keeps the named volumes, in StateDir/volumes/<name>/data.
	StateDir string
	// StageDir gets the staged mounts, in StageDir/<environment>/<n>. The
	// container runtime must see it: same mount namespace.
	StageDir string
	// AllowedRoots are the host directories below which (and which
	// themselves) may be bound. None: no bind mounts.
	AllowedRoots []string
	// Denied are host paths that are never bound, nor anything above or below
	// them, on top of the kernel's file systems and the usual runtimes' own.
	Denied []string
	Log    *slog.Logger
}

// Manager stages mounts. It is safe for concurrent use.
//
// Each environment with host mounts gets a small private tmpfs of its own that
// holds the mountpoints: so nothing propagates to or from the host's other
// mount namespaces, unmounting that one directory takes everything, and no
// code here ever has to remove a directory recursively where a missed unmount
// would make it somebody's data.
type Manager struct {
	config Config
	denied []string
	locks  keylock.Map[string] // "env/<id>" first, then "volume/<name>" in order
	copied copies
	sizes  sizeBounds
	// removing are the deleted volumes whose files go now, and remove does that.
	removing removals
	remove   func(ctx context.Context, path string) error
	attach   func(tree *tree, dir int, name string) error
}

// New checks the configuration: absolute, clean paths. It touches nothing.
func New(config Config) (*Manager, error) {
	paths := map[string][]string{
		"state_dir": {config.StateDir}, "stage_dir": {config.StageDir},
		"allowed_roots": config.AllowedRoots, "denied": config.Denied,
	}
	for field, values := range paths {
		for _, path := range values {
			if !filepath.IsAbs(path) || filepath.Clean(path) != path {
				return nil, problem.New(problem.ConfigInvalid, "%s: %q is not an absolute, clean path", field, path).
					WithField(field).WithHint("write it with a leading slash, without a trailing one, without .. and .")
			}
		}
	}
	denied := slices.Concat(alwaysDenied(), config.Denied, []string{config.StateDir, config.StageDir})
	return &Manager{config: config, denied: denied, sizes: defaultSizeBounds, attach: (*tree).attach, remove: removeTree}, nil
}

// Stage pins each mount under StageDir/<envID>, replacing what was staged
// before, and returns them with parents before children. Everything is opened
// before anything is mounted. On error nothing is left, new volumes neither.
func (m *Manager) Stage(ctx context.Context, envID string, mounts []Mount) (_ []Staged, err error) {
	if err := checkID(envID); err != nil {
		return nil, err
	}
	unlock, err := m.lock(ctx, envID, mounts)
	if err != nil {
		return nil, fmt.Errorf("stage mounts of %s: %w", envID, err)
	}
	defer unlock()
	if err := m.unstage(ctx, envID); err != nil {
		return nil, err
	}
	var undo []func() error
	defer func() {
		if err == nil {
			return
		}
		for _, step := range slices.Backward(undo) {
			err = errors.Join(err, step())
		}
	}()
	trees := make([]*tree, len(mounts))
	defer func() {
		for _, t := range trees {
			t.close()
		}
	}()
	for i, mount := range mounts {
		if mount.Type == Tmpfs {
			continue
		}
		fd, created, err := m.source(mount)
		if created {
			undo = append(undo, func() error { return m.forgetVolume(mount.Source) })
		}
		if err != nil {
			return nil, fmt.Errorf("stage mount %s of %s: %w", mount.Target, envID, err)
		}
		trees[i], err = newTree(fd, mount.ReadOnly)
		if err != nil {
			return nil, fmt.Errorf("stage mount %s of %s: %w", mount.Target, envID, err)
		}
	}
	undo = append(undo, func() error { return m.unstage(context.WithoutCancel(ctx), envID) })
	staged, err := m.place(ctx, envID, mounts, trees)
	if err != nil {
		return nil, fmt.Errorf("stage mounts of %s: %w", envID, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("stage mounts of %s: %w", envID, err)
	}
	return staged, nil
}

// lock takes the environment's lock and those of its volumes, so that undoing
// the creation of a volume never takes it from another environment.
func (m *Manager) lock(ctx context.Context, envID string, mounts []Mount) (func(), error) {
	keys := []string{}
	for _, mount := range mounts {
		if mount.Type == Volume {
			keys = append(keys, "volume/"+mount.Source)
		}
	}
	slices.Sort(keys)
	keys = append([]string{"env/" + envID}, slices.Compact(keys)...)
	var held []func()
	release := func() {
		for _, unlock := range slices.Backward(held) {
			unlock()
		}
	}
	for _, key := range keys {
		unlock, err := m.locks.Lock(ctx, key)
		if err != nil {
			release()
			return nil, err
		}
		held = append(held, unlock)
	}
	return release, nil
}

func (m *Manager) place(ctx context.Context, envID string, mounts []Mount, trees []*tree) ([]Staged, error) {
	staged := make([]Staged, 0, len(mounts))
	dir := ""
	for i, mount := range mounts {
		mode := "rw"
		if mount.ReadOnly {
			mode = "ro"
		}
		if mount.Type == Tmpfs {
			size := cmp.Or(mount.SizeBytes, DefaultTmpfsBytes)
			staged = append(staged, Staged{
				FSType: "tmpfs", Source: "tmpfs", Target: mount.Target,
				Options: []string{mode, "nosuid", "nodev", fmt.Sprintf("size=%d", size), "mode=1777"},
			})
			continue
		}
		if dir == "" {
			var err error
			if dir, err = m.makeDir(ctx, envID); err != nil {
				return nil, err
			}
		}
		name := fmt.Sprint(i)
		if err := m.pin(trees[i], dir, name); err != nil {
			return nil, fmt.Errorf("mount %s: %w", mount.Target, err)
		}
		if err := fault.Point(ctx, "mount staged"); err != nil {
			return nil, err
		}
		staged = append(staged, Staged{
			FSType: "bind", Source: filepath.Join(dir, name), Target: mount.Target,
			Options: []string{"rbind", "rprivate", mode, "nosuid", "nodev"},
		})
	}
	slices.SortStableFunc(staged, func(a, b Staged) int {
		return cmp.Compare(strings.Count(a.Target, "/"), strings.Count(b.Target, "/"))
	})
	return staged, nil
}

// makeDir mounts the private tmpfs that holds an environment's mountpoints.
func (m *Manager) makeDir(ctx context.Context, envID string) (string, error) {
	if err := os.MkdirAll(m.config.StageDir, 0o700); err != nil {
		return "", fmt.Errorf("make staging directory: %w", err)
	}
	root, err := filepath.EvalSymlinks(m.config.StageDir)
	if err != nil {
		return "", fmt.Errorf("resolve staging directory: %w", err)
	}
	dir := filepath.Join(root, envID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("make staging directory: %w", err)
	}
	if err := fault.Point(ctx, "staging directory made"); err != nil {
		return "", err
	}
	if err := unix.Mount("remotegpu", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC,
		"size=64k,mode=0700"); err != nil {
		return "", fmt.Errorf("mount %s: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return "", fmt.Errorf("make %s private: %w", dir, err)
	}
	return dir, nil
}

// pin attaches a tree at dir/name, a directory or a file as the tree is.
func (m *Manager) pin(t *tree, dir, name string) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	defer closeFD(fd)
	if t.directory {
		err = unix.Mkdirat(fd, name, 0o700)
	} else {
		err = unix.Mknodat(fd, name, unix.S_IFREG|0o600, 0)
	}
	if err != nil {
		return fmt.Errorf("make mountpoint: %w", err)
	}
	return m.attach(t, fd, name)
}

// Unstage removes what Stage made. What is absent is removed already; volumes
// keep their content.
func (m *Manager) Unstage(ctx context.Context, envID string) error {
	if err := checkID(envID); err != nil {
		return err
	}
	unlock, err := m.lock(ctx, envID, nil)
	if err != nil {
		return fmt.Errorf("unstage mounts of %s: %w", envID, err)
	}
	defer unlock()
	return m.unstage(ctx, envID)
}

func (m *Manager) unstage(ctx context.Context, envID string) error {
	root, err := filepath.EvalSymlinks(m.config.StageDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unstage mounts of %s: %w", envID, err)
	}
	dir := filepath.Join(root, envID)
	if err := m.unmountBelow(ctx, dir); err != nil {
		return fmt.Errorf("unstage mounts of %s: %w", envID, err)
	}
	if err := fault.Point(ctx, "mounts unstaged"); err != nil {
		return fmt.Errorf("unstage mounts of %s: %w", envID, err)
	}
	// Not RemoveAll: what is still in there is not ours to delete.
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unstage mounts of %s: %w", envID, err)
	}
	return nil
}

// Staged lists the environments that have something in StageDir, also what a
// crash left half done.
func (m *Manager) Staged(context.Context) ([]string, error) {
	entries, err := os.ReadDir(m.config.StageDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list staged mounts: %w", err)
	}
	var ids []string
	for _, entry := range entries {
		if entry.IsDir() && checkID(entry.Name()) == nil {
			ids = append(ids, entry.Name())
		}
	}
	return ids, nil
}

// checkID refuses what is not one plain path component.
func checkID(envID string) error {
	ok := envID != "" && len(envID) <= 64
	for _, c := range envID {
		ok = ok && (c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-')
	}
	if !ok {
		return fmt.Errorf("environment id %q: %w", envID, errdefs.ErrInvalidArgument)
	}
	return nil
}
