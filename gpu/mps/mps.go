// Package mps runs the control daemon of NVIDIA's Multi-Process Service, one for
// each GPU whose holders share it by MPS. A control daemon outlives the node's
// own, as environments do: it has a cgroup of its own, with its servers, and is
// found again by its directory.
package mps

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/cgroup"
	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/keylock"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// Config says how. Zero fields mean the default, but for Control and Dir.
type Config struct {
	// Control is the path of nvidia-cuda-mps-control. "": no daemon is started,
	// and those of before are ended.
	Control string
	// Dir has a directory for each GPU: pipe and log of its daemon, and shm, the
	// memory that the daemon and its clients share. On a tmpfs, root's alone.
	Dir string
	// Cgroup is the one above those of the daemons, DefaultCgroup.
	Cgroup string
	// SetExclusive lets one process alone have contexts on a GPU, or any number,
	// as gpu.Driver does.
	SetExclusive func(ctx context.Context, gpuUUID string, on bool) error
	// ShmBytes is the size of shm, DefaultShm.
	ShmBytes int64
	// Timeout bounds a question to a control daemon, DefaultTimeout.
	Timeout time.Duration
	Log     *slog.Logger
}

// DefaultShm is the size of the memory that the clients of one GPU share, in
// bytes.
const DefaultShm = 1 << 30

// DefaultCgroup is the cgroup above those of daemons.
const DefaultCgroup = "/remotegpu"

// DefaultTimeout is how long a control daemon may take to answer.
const DefaultTimeout = 10 * time.Second

const (
	// quitTimeout is how long a daemon that was told to may take to end.
	quitTimeout = 5 * time.Second
	// killTimeout is how long the kernel may take to end what was killed.
	killTimeout = 10 * time.Second
	// launchTimeout bounds the program that leaves a daemon behind.
	launchTimeout = 10 * time.Second
	// undoTimeout bounds the end of a daemon whose start failed.
	undoTimeout = 30 * time.Second
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
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Cgroup == "" {
		cfg.Cgroup = DefaultCgroup
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

func (d *Daemons) cgroup(uuid string) string { return filepath.Join(d.cfg.Cgroup, "mps-"+uuid) }

// Prepare starts the control daemon of a GPU unless it answers, and makes room in
// its limits for a client of a share. On error nothing is left, unless there was a
// daemon before. GPU_TOOLKIT_MISSING without the program, GPU_UNAVAILABLE
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
	well, err := d.answers(ctx, uuid)
	if err != nil {
		return Client{}, err
	}
	if well {
		return client, d.widen(ctx, uuid, share)
	}
	if _, err := os.Stat(d.cfg.Control); err != nil {
		return Client{}, problem.New(problem.GPUToolkitMissing, "nvidia-cuda-mps-control cannot be used: %v", err).WithCause(err).
			WithHint("it comes with the driver; set its place in the section gpu of the configuration, or use another mode")
	}
	if err := d.trust(); err != nil {
		return Client{}, err
	}
	_, absent := os.Lstat(d.home(uuid))
	err = d.start(ctx, uuid)
	if err == nil {
		err = d.widen(ctx, uuid, share)
	}
	if err != nil && absent == nil { // one has died: its clients have its directories, and Keep tries again
		return Client{}, err
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return Client{}, errors.Join(err, d.end(undo, uuid))
	}
	d.cfg.Log.InfoContext(ctx, "an MPS control daemon was started", "gpu", uuid)
	return client, fault.Point(ctx, "MPS daemon started")
}

// answers says whether a GPU's daemon is there and well. GPU_UNAVAILABLE when it
// is there and says nothing: its clients may use it all the same.
func (d *Daemons) answers(ctx context.Context, uuid string) (bool, error) {
	if d.cfg.Control == "" {
		return false, nil
	}
	if _, err := os.Stat(filepath.Join(d.home(uuid), "pipe")); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("look for the MPS daemon of GPU %s: %w", uuid, err)
	}
	out, err := d.ask(ctx, uuid, "get_default_active_thread_percentage")
	switch {
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		return false, problem.New(problem.GPUUnavailable, "the MPS control daemon of GPU %s does not answer", uuid).WithCause(err).
			WithHint("see the log in %s/log; it is ended when no environment that shares the GPU runs any more", d.home(uuid))
	case ctx.Err() != nil:
		return false, context.Cause(ctx)
	case err != nil:
		if _, refused := errors.AsType[*exec.ExitError](err); !refused {
			return false, err // it was not asked
		}
	}
	return err == nil && strings.TrimSpace(out) != "", nil
}

// sinceName is the file in a daemon's directory that says when it was started.
const sinceName = "since"

// Since is when the daemon of a GPU was started; false when there is none, nor one
// that died and is to be started again.
func (d *Daemons) Since(uuid string) (time.Time, bool) {
	if !uuidText.MatchString(uuid) {
		return time.Time{}, false
	}
	text, err := os.ReadFile(filepath.Join(d.home(uuid), sinceName))
	if err != nil {
		return time.Time{}, false
	}
	since, err := time.Parse(time.RFC3339Nano, string(text))
	return since, err == nil
}

// Runs says whether a process is the daemon of a GPU or a server of it. NotFound
// when there is no such process.
func (d *Daemons) Runs(uuid string, pid int) (bool, error) {
	if !uuidText.MatchString(uuid) {
		return false, nil
	}
	return cgroup.Contains(pid, d.cgroup(uuid))
}

// Keep looks at the daemons that there are. Those of GPUs that are needed it
// starts again if they have died: their clients get CUDA errors until then. The
// others it ends, all where no program is configured. needed is asked while nobody
// else prepares that GPU: who is about to has said so by then, or waits.
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

// Settle does as Keep for one GPU.
func (d *Daemons) Settle(ctx context.Context, uuid string, needed func(ctx context.Context, gpuUUID string) (bool, error)) error {
	if !uuidText.MatchString(uuid) {
		return nil
	}
	if _, err := os.Lstat(d.home(uuid)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return d.keep(ctx, uuid, needed)
}

func (d *Daemons) keep(ctx context.Context, uuid string, needed func(ctx context.Context, gpuUUID string) (bool, error)) error {
	unlock, err := d.locks.Lock(ctx, uuid)
	if err != nil {
		return err
	}
	defer unlock()
	wanted, err := needed(ctx, uuid)
	if err != nil {
		return err
	}
	if wanted && d.cfg.Control != "" {
		if well, err := d.answers(ctx, uuid); err != nil {
			return err
		} else if well {
			return d.limitAgain(ctx, uuid) // who started it may have died
		}
		// What it leaves when it fails containers have: it is tried again.
		if err := d.start(ctx, uuid); err != nil {
			return err
		}
		if err := d.limitAgain(ctx, uuid); err != nil {
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
