package runtime

import (
	"bufio"
	"bytes"
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/rootfs"
)

// CopyLimit is how many uploads and downloads may go on at a time in one
// environment, and in one volume: each holds buffers and descriptors.
const CopyLimit = 16

const (
	downloadChunk = 128 << 10 // bytes of a message
	downloadAhead = 4         // messages that wait for a slow receiver
)

// Roots gives access to the files of containers; runtime/containerd implements
// it.
type Roots interface {
	// WithRoot calls use with the root directory of a container, as its
	// processes see it where it runs (live), otherwise its writable layer on its
	// image without any other mount. ended says that its last process is known to
	// have ended, and how; without, a container that does not run is
	// FailedPrecondition. It returns use's error.
	//
	// The context of use ends when the container's process does, and before it is
	// started or deleted or its layer is replaced, which wait for use to return; *problem.Problem
	// COPY_INTERRUPTED is the cause then. NotFound.
	WithRoot(ctx context.Context, id string, ended bool, use func(ctx context.Context, root *rootfs.Root, live bool) error) error
}

// Place is a path in an environment or in a volume.
type Place struct {
	Project     string
	Environment string // id or name
	Volume      string // instead of an environment
	Path        string
}

// UploadRequest says where an archive is taken out, and how.
type UploadRequest struct {
	Place
	KeepOwnership bool   // as the archive says
	Owner         string // otherwise: user or user:group, names or numbers; "": root
	NoOverwrite   bool
}

// StatFile tells about a file. ENV_NOT_FOUND, ENV_BUSY, ENV_NOT_STARTABLE,
// VOLUME_NOT_FOUND, COPY_INTERRUPTED, and the errors of rootfs.Root.Stat.
func (m *Manager) StatFile(ctx context.Context, place Place, follow bool) (info rootfs.Info, err error) {
	err = m.withRoot(ctx, place, func(_ context.Context, root *rootfs.Root) error {
		info, err = root.Stat(place.Path, follow)
		return err
	})
	return info, err
}

// Upload takes a tar stream out. next returns its next part, io.EOF after the
// last; it must return when its context ends. Errors as StatFile's,
// COPY_LIMIT_REACHED, USER_NOT_FOUND, and those of rootfs.Root.Extract.
func (m *Manager) Upload(ctx context.Context, req UploadRequest, next func(context.Context) ([]byte, error)) (done rootfs.Extracted, err error) {
	if req.KeepOwnership && req.Owner != "" {
		return done, problem.New(problem.FieldInvalid, "there is an owner, and ownership is to be kept").WithField("owner").
			WithHint("leave one of both out")
	}
	err = m.copying(ctx, req.Place, func(ctx context.Context, root *rootfs.Root) error {
		uid, gid, err := root.Owner(req.Owner, req.Volume == "")
		if err != nil {
			return err
		}
		done, err = root.Extract(ctx, req.Path, &parts{ctx: ctx, next: next}, rootfs.Extraction{
			KeepOwner: req.KeepOwnership, UID: uid, GID: gid, NoOverwrite: req.NoOverwrite,
		})
		return err
	})
	return done, err
}

// parts reads what next returns.
type parts struct {
	ctx  context.Context //nolint:containedctx // of the one call that it is a part of
	next func(context.Context) ([]byte, error)
	rest []byte
}

// Read implements io.Reader.
func (p *parts) Read(to []byte) (int, error) {
	for len(p.rest) == 0 {
		var err error
		if p.rest, err = p.next(p.ctx); err != nil {
			return 0, err
		}
	}
	n := copy(to, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// DownloadPart is a part of a download: what is sent, once and first, or data.
type DownloadPart struct {
	Info *rootfs.Info
	Data []byte
}

// Download sends a file with all that is below it as a tar stream. A receiver
// that is slow does not keep the environment from being started or deleted.
// Errors as StatFile's, COPY_LIMIT_REACHED, those of rootfs.Root.Pack, and that
// of send.
func (m *Manager) Download(ctx context.Context, place Place, follow bool, send func(DownloadPart) error) (packed rootfs.Packed, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan DownloadPart, downloadAhead)
	go func() {
		defer close(queue)
		packed, err = m.pack(ctx, place, follow, queue)
	}()
	var failed error
	for part := range queue {
		if failed != nil {
			continue
		}
		if failed = send(part); failed != nil {
			cancel(failed)
		}
	}
	if failed != nil {
		return packed, failed
	}
	return packed, err
}

func (m *Manager) pack(ctx context.Context, place Place, follow bool, queue chan<- DownloadPart) (packed rootfs.Packed, err error) {
	err = m.copying(ctx, place, func(ctx context.Context, root *rootfs.Root) error {
		put := func(part DownloadPart) error {
			select {
			case queue <- part:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		buffer := bufio.NewWriterSize(writerFunc(func(p []byte) (int, error) {
			return len(p), put(DownloadPart{Data: bytes.Clone(p)})
		}), downloadChunk)
		packed, err = root.Pack(ctx, place.Path, follow, buffer, func(info rootfs.Info) error { return put(DownloadPart{Info: &info}) })
		if err != nil {
			return err
		}
		return buffer.Flush()
	})
	return packed, err
}

type writerFunc func(p []byte) (int, error)

// Write implements io.Writer.
func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// copying is withRoot for what takes long.
func (m *Manager) copying(ctx context.Context, place Place, use func(context.Context, *rootfs.Root) error) error {
	key, what, field := "volume/"+place.Volume, fmt.Sprintf("volume %q", place.Volume), "volume"
	if place.Volume == "" {
		env, err := m.Get(ctx, place.Project, place.Environment)
		if err != nil {
			return err
		}
		key, what, field = env.ID, fmt.Sprintf("environment %q", env.Name), "environment"
	}
	if !m.copies.enter(key, CopyLimit) {
		return problem.New(problem.CopyLimit, "%d copies go on in %s already", CopyLimit, what).WithField(field).
			WithHint("let one of them end first, or copy several files at once")
	}
	defer m.copies.leave(key)
	return m.withRoot(ctx, place, use)
}

// withRoot calls use with the root that a place is in.
func (m *Manager) withRoot(ctx context.Context, place Place, use func(context.Context, *rootfs.Root) error) error {
	if place.Volume != "" {
		return m.cfg.NamedVolumes.WithRoot(ctx, place.Volume, use)
	}
	env, err := m.Get(ctx, place.Project, place.Environment)
	if err != nil {
		return err
	}
	return m.moving(ctx, env, standstillWait, func(env *Environment) error { return m.withRootOf(ctx, env, use) })
}

// withRootOf calls use with the root of an environment, ErrPaused when the
// engine changes or reads its layer.
func (m *Manager) withRootOf(ctx context.Context, env *Environment, use func(context.Context, *rootfs.Root) error) error {
	busy := problem.New(problem.EnvBusy, "environment %q is being made, started, stopped or deleted", env.Name).WithField("environment").
		WithHint("try again when that is done: remotegpu env get %s", env.Name)
	ended := !env.Alive()
	switch {
	case ended && env.Operation != "":
		return busy
	case ended && (!env.Held || env.StartedAt.IsZero()):
		return problem.New(problem.EnvNotStartable, "environment %q was never made: its create failed", env.Name).
			WithField("environment").WithHint("delete it and create it anew")
	}
	entered := false
	err := m.cfg.Roots.WithRoot(ctx, env.ID, ended, func(ctx context.Context, root *rootfs.Root, live bool) error {
		entered = true
		if !live {
			root.Hide(mountPoints(env)...)
		}
		return use(ctx, root)
	})
	if !entered && (errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err)) {
		return busy.WithCause(err)
	}
	if p := problem.Of(err); !entered && p != nil && p.Reason == problem.CopyInterrupted {
		return fmt.Errorf("%w: %w", ErrPaused, err)
	}
	return err
}

// mountPoints are where something else is seen while an environment runs.
func mountPoints(env *Environment) []string {
	points := []string{"/proc", "/sys", "/dev", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"}
	for _, mount := range env.Spec.Mounts {
		points = append(points, mount.Target)
	}
	return points
}
