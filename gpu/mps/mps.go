// Package mps runs the control daemon of NVIDIA's Multi-Process Service, one for
// each GPU whose holders share it by MPS. A control daemon outlives the node's
// own, as environments do: it is found again by its directory.
package mps

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/keylock"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// Config says how. Zero fields mean the default, but for Control and Dir.
type Config struct {
	// Control is the path of nvidia-cuda-mps-control.
	Control string
	// Dir has a directory for each GPU: pipe and log of its daemon, and shm, the
	// memory that the daemon and its clients share. On a tmpfs, root's alone.
	Dir string
	// SetExclusive lets one process alone have contexts on a GPU, or any number,
	// as gpu.Driver does.
	SetExclusive func(ctx context.Context, gpuUUID string, on bool) error
	// ShmBytes is the size of shm, DefaultShm.
	ShmBytes int64
	Log      *slog.Logger
}

// DefaultShm is the size of the memory that the clients of one GPU share, in
// bytes.
const DefaultShm = 1 << 30

const (
	// askTimeout bounds a question to a control daemon.
	askTimeout = 10 * time.Second
	// startTimeout is how long a control daemon may take to answer.
	startTimeout = 20 * time.Second
	poll         = 100 * time.Millisecond
)

// Daemons are the control daemons of a host. It is safe for concurrent use.
type Daemons struct {
	cfg   Config
	locks keylock.Map[string]
}

// New returns the daemons of a directory. It starts none.
func New(cfg Config) *Daemons {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.ShmBytes == 0 {
		cfg.ShmBytes = DefaultShm
	}
	return &Daemons{cfg: cfg}
}

// Client is what the clients of a GPU's daemon need: directories of the host.
type Client struct {
	Pipe string // CUDA_MPS_PIPE_DIRECTORY
	Shm  string // their /dev/shm
}

var uuidText = regexp.MustCompile(`^GPU-[0-9a-zA-Z-]{1,64}$`)

func (d *Daemons) home(uuid string) string { return filepath.Join(d.cfg.Dir, uuid) }

// Prepare starts the control daemon of a GPU unless it answers, and makes room in
// its limits for a client of a share. On error nothing is left of a daemon that
// was not there before. GPU_TOOLKIT_MISSING without the program, GPU_UNAVAILABLE
// when it does not come up.
func (d *Daemons) Prepare(ctx context.Context, uuid string, share gpu.Share) (Client, error) {
	if !uuidText.MatchString(uuid) {
		return Client{}, problem.New(problem.GPUNotFound, "%q is no UUID of a GPU that MPS could serve", uuid).WithHint("see remotegpu gpu ls")
	}
	unlock, err := d.locks.Lock(ctx, uuid)
	if err != nil {
		return Client{}, err
	}
	defer unlock()
	client := Client{Pipe: filepath.Join(d.home(uuid), "pipe"), Shm: filepath.Join(d.home(uuid), "shm")}
	if d.answers(ctx, uuid) {
		return client, d.widen(ctx, uuid, share)
	}
	if _, err := os.Stat(d.cfg.Control); err != nil {
		return Client{}, problem.New(problem.GPUToolkitMissing, "nvidia-cuda-mps-control cannot be used: %v", err).WithCause(err).
			WithHint("it comes with the driver; set its place in the section gpu of the configuration, or use another mode")
	}
	if err := d.trust(); err != nil {
		return Client{}, err
	}
	err = d.start(ctx, uuid)
	if err == nil {
		err = d.widen(ctx, uuid, share)
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
		defer cancel()
		return Client{}, errors.Join(err, d.end(undo, uuid))
	}
	d.cfg.Log.InfoContext(ctx, "an MPS control daemon was started", "gpu", uuid)
	return client, fault.Point(ctx, "MPS daemon started")
}

// start makes a daemon's directories and starts it.
func (d *Daemons) start(ctx context.Context, uuid string) error {
	home := d.home(uuid)
	for _, dir := range []string{"pipe", "log", "shm"} {
		if err := os.MkdirAll(filepath.Join(home, dir), 0o755); err != nil {
			return fmt.Errorf("make directory of the MPS daemon: %w", err)
		}
	}
	// What a daemon that died has left would be taken for a living one's. The
	// directories stay: containers have them.
	if err := empty(filepath.Join(home, "pipe")); err != nil {
		return err
	}
	shm := filepath.Join(home, "shm")
	if err := d.mountShm(home, shm); err != nil {
		return err
	}
	if d.cfg.SetExclusive != nil {
		if err := d.cfg.SetExclusive(ctx, uuid, true); err != nil {
			return fmt.Errorf("let MPS alone use GPU %s: %w", uuid, err)
		}
	}
	// The server and its clients meet in /dev/shm, which is another one for each
	// of them unless it is made the same.
	if err := d.launch(ctx, uuid, "unshare", "--mount", "--propagation", "private", "--",
		"/bin/sh", "-c", `mount --bind "$1" /dev/shm && exec "$2" -d`, "sh", shm, d.cfg.Control); err != nil {
		return problem.New(problem.GPUUnavailable, "the MPS control daemon of GPU %s does not start", uuid).WithCause(err).
			WithHint("see the log in %s/log", home)
	}
	for deadline := time.Now().Add(startTimeout); !d.answers(ctx, uuid); {
		if time.Now().After(deadline) {
			return problem.New(problem.GPUUnavailable, "the MPS control daemon of GPU %s does not answer", uuid).WithHint("see the log in %s/log", home)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(poll):
		}
	}
	return nil
}

func (d *Daemons) mountShm(home, shm string) error {
	var outside, inside unix.Stat_t
	if err := unix.Lstat(home, &outside); err != nil {
		return fmt.Errorf("inspect %s: %w", home, err)
	}
	if err := unix.Lstat(shm, &inside); err != nil {
		return fmt.Errorf("inspect %s: %w", shm, err)
	}
	if outside.Dev != inside.Dev {
		return nil // it is mounted
	}
	if err := unix.Mount("remotegpu-mps", shm, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, fmt.Sprintf("size=%d,mode=1777", d.cfg.ShmBytes)); err != nil {
		return fmt.Errorf("mount %s: %w", shm, err)
	}
	return nil
}

func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("empty %s: %w", dir, err)
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
			return fmt.Errorf("empty %s: %w", dir, err)
		}
	}
	return nil
}

// answers says whether a GPU's daemon is there and well.
func (d *Daemons) answers(ctx context.Context, uuid string) bool {
	if _, err := os.Stat(filepath.Join(d.home(uuid), "pipe")); err != nil {
		return false
	}
	out, err := d.ask(ctx, uuid, "get_default_active_thread_percentage")
	return err == nil && strings.TrimSpace(out) != ""
}

// Keep looks at the daemons that there are. Those of GPUs that are needed it
// starts again if they have died: their clients get CUDA errors until then. The
// others it ends. needed is asked while nobody else prepares that GPU: who is
// about to has said so by then, or waits.
func (d *Daemons) Keep(ctx context.Context, needed func(ctx context.Context, gpuUUID string) (bool, error)) error {
	entries, err := os.ReadDir(d.cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list MPS daemons: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		if uuidText.MatchString(entry.Name()) {
			errs = append(errs, d.keep(ctx, entry.Name(), needed))
		}
	}
	return errors.Join(errs...)
}

func (d *Daemons) keep(ctx context.Context, uuid string, needed func(ctx context.Context, gpuUUID string) (bool, error)) error {
	unlock, err := d.locks.Lock(ctx, uuid)
	if err != nil {
		return err
	}
	defer unlock()
	wanted, err := needed(ctx, uuid)
	switch {
	case err != nil:
		return err
	case wanted && d.answers(ctx, uuid):
		return nil
	case wanted:
		// What it leaves when it fails containers have: it is tried again.
		err := d.start(ctx, uuid)
		if err == nil {
			err = d.limit(ctx, uuid, d.limits(uuid))
		}
		if err != nil {
			return err
		}
		d.cfg.Log.WarnContext(ctx, "an MPS control daemon had died and was started again", "gpu", uuid)
		return nil
	}
	if err := d.end(ctx, uuid); err != nil {
		return fmt.Errorf("end MPS daemon of GPU %s: %w", uuid, err)
	}
	d.cfg.Log.InfoContext(ctx, "an MPS control daemon was ended", "gpu", uuid)
	return nil
}

// end ends a daemon, gives the GPU back to everybody and removes its directory.
func (d *Daemons) end(ctx context.Context, uuid string) error {
	if d.answers(ctx, uuid) {
		if _, err := d.ask(ctx, uuid, "quit"); err != nil {
			return err
		}
	}
	if d.cfg.SetExclusive != nil {
		// A GPU that has gone is nobody's.
		if err := d.cfg.SetExclusive(ctx, uuid, false); err != nil && problem.Of(err).Reason != problem.GPUNotFound {
			return fmt.Errorf("let all use GPU %s: %w", uuid, err)
		}
	}
	return d.clear(uuid)
}

// clear removes what a daemon has on the host's disks.
func (d *Daemons) clear(uuid string) error {
	shm := filepath.Join(d.home(uuid), "shm")
	for {
		err := unix.Unmount(shm, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", shm, err)
		}
	}
	if err := os.RemoveAll(d.home(uuid)); err != nil {
		return fmt.Errorf("remove directory of the MPS daemon: %w", err)
	}
	return nil
}
