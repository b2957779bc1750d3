package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/imageref"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// resolveSnapshot completes the spec of an environment that is made from a
// snapshot: what it names by id, and the image of that. nil without one.
func (m *Manager) resolveSnapshot(ctx context.Context, project string, spec *Spec) (*Snapshot, error) {
	if spec.Snapshot == "" {
		return nil, nil //nolint:nilnil // most have none
	}
	snapshot, err := m.findSnapshot(ctx, project, spec.Snapshot, "", "spec.snapshot")
	if err != nil {
		return nil, err
	}
	if err := usable(snapshot, "spec.snapshot"); err != nil {
		return nil, err
	}
	if spec.Image != "" {
		name, err := normalize(spec.Image, "spec.image")
		if err != nil {
			return nil, err
		}
		if name != snapshot.Layer.Image {
			return nil, invalid("spec.image", "leave it out: the snapshot says what the image is", "the snapshot is of image %s", snapshot.Layer.Image)
		}
	}
	if spec.PullPolicy == PullAlways {
		return nil, invalid("spec.pull_policy", "leave it out", "nothing is pulled for an environment that is made from a snapshot")
	}
	spec.Snapshot, spec.Image = snapshot.ID, snapshot.Layer.Image
	return snapshot, nil
}

// origin is what an environment is made from: its image, or that of its
// snapshot. create makes its container.
func (m *Manager) origin(ctx context.Context, env *Environment, task *operation.Task) (
	image Image, create func(context.Context, Container) error, err error,
) {
	if env.Spec.Snapshot == "" {
		image, err = m.obtainImage(ctx, env, task)
		return image, func(ctx context.Context, c Container) error {
			c.Digest = image.Digest // which was checked, and is recorded
			return m.cfg.Engine.Create(ctx, c)
		}, err
	}
	snapshot, err := m.findSnapshot(ctx, env.Project, env.Spec.Snapshot, "", "spec.snapshot")
	if err == nil {
		err = usable(snapshot, "spec.snapshot")
	}
	if err != nil {
		return Image{}, nil, err
	}
	layer := snapshot.Layer
	return Image{Name: layer.Image, Digest: layer.ImageDigest, Labels: layer.ImageLabels}, func(ctx context.Context, c Container) error {
		c.Snapshot, c.Base = snapshot.ID, layer.Base
		return m.cfg.Engine.Create(ctx, c)
	}, nil
}

// RollBackRequest asks for the root filesystem of a snapshot.
type RollBackRequest struct {
	RequestID   string
	Project     string
	Environment string // id or name
	Snapshot    string // id, name, or ENVIRONMENT/NAME
	Etag        string // of the environment; "": whatever it is
	Force       bool   // though it runs
	// Timeout is the time between SIGTERM and SIGKILL. nil: DefaultStopTimeout.
	Timeout *time.Duration
}

// RollBack makes the root filesystem of an environment what it was.
func (m *Manager) RollBack(ctx context.Context, req RollBackRequest) (*Environment, *operation.Operation, error) {
	if req.Project == "" {
		req.Project = DefaultProject
	}
	hash := hashOf(KindRollBack, req)
	if op, err := m.known(ctx, req.Project, req.RequestID, hash); op != nil || err != nil {
		return m.answer(ctx, op, err)
	}
	env, err := m.Get(ctx, req.Project, req.Environment)
	if err != nil {
		return nil, nil, err
	}
	snapshot, err := m.findSnapshot(ctx, req.Project, req.Snapshot, env.ID, "snapshot")
	if err != nil {
		return nil, nil, err
	}
	if snapshot.EnvID != env.ID && snapshot.ID != env.Spec.Snapshot {
		return nil, nil, invalid("snapshot", "use one of its own, or make a new environment: remotegpu env create --from-snapshot",
			"snapshot %q is of environment %q", snapshot.Name, snapshot.EnvName)
	}
	if err := usable(snapshot, "snapshot"); err != nil {
		return nil, nil, err
	}
	args := snapshotArgs{Snapshot: snapshot.ID, Timeout: DefaultStopTimeout, Force: req.Force}
	if req.Timeout != nil {
		args.Timeout = *req.Timeout
	}
	op := m.newOperation(KindRollBack, env.Project, env.ID, req.RequestID, hash, nil)
	updated, existing, err := m.cfg.Store.UpdateEnvironment(fault.Within(ctx, "request ", KindRollBack), env.ID, op, recorded(func(env *Environment) error {
		if err := errors.Join(checkFree(env, req.Etag), checkMade(env)); err != nil {
			return err
		}
		if env.Alive() && !req.Force {
			return problem.New(problem.EnvRunning, "environment %q runs, or is paused", env.Name).WithField("force").
				WithHint("stop it first, or roll it back with force: it is stopped, and started again if it ran")
		}
		if args.Restart = env.State == Running; args.Restart {
			env.RestartCount = 0 // somebody starts it
		}
		env.Operation = op.ID
		var err error
		op.Args, err = json.Marshal(args) // whether it runs is known now
		return err
	}))
	if err != nil || existing != nil {
		if existing != nil {
			err = checkHash(existing, hash)
		} else {
			m.cfg.Queue.Kick(op.ID) // the answer was lost, perhaps not the row
		}
		return m.answer(ctx, existing, err)
	}
	m.fill(updated)
	m.follow(updated)
	m.changes.publish(updated)
	m.cfg.Queue.Kick(op.ID)
	return updated, op, nil
}

// ExportRequest asks for an image of a snapshot.
type ExportRequest struct {
	RequestID string
	Project   string
	Snapshot  string // id, or ENVIRONMENT/NAME
	Reference string // "": of the names of project, environment and snapshot
}

// Export has an image made of a snapshot. It returns the reference that it
// gets.
func (m *Manager) Export(ctx context.Context, req ExportRequest) (string, *operation.Operation, error) {
	if req.Project == "" {
		req.Project = DefaultProject
	}
	hash := hashOf(KindExport, req)
	if op, err := m.known(ctx, req.Project, req.RequestID, hash); op != nil || err != nil {
		return exportedAs(op, err)
	}
	if err := m.room(); err != nil {
		return "", nil, err
	}
	snapshot, err := m.findSnapshot(ctx, req.Project, req.Snapshot, "", "snapshot")
	if err != nil {
		return "", nil, err
	}
	if req.Reference == "" {
		req.Reference = exportName(snapshot)
	}
	name, err := normalize(req.Reference, "reference")
	if err != nil {
		return "", nil, err
	}
	if err := imageref.CheckDigest(name, "", "reference"); err != nil {
		return "", nil, err
	}
	op := m.newOperation(KindExport, snapshot.Project, snapshot.ID, req.RequestID, hash, snapshotArgs{Snapshot: snapshot.ID, Reference: name})
	_, existing, err := m.cfg.Store.UpdateSnapshot(fault.Within(ctx, "request ", KindExport), snapshot.ID, op, func(s *Snapshot) error {
		if s.Operation != "" || s.State != SnapshotReady {
			return snapshotBusy(s)
		}
		s.Operation = op.ID
		return nil
	})
	if err != nil || existing != nil {
		if existing != nil {
			err = checkHash(existing, hash)
		} else {
			m.cfg.Queue.Kick(op.ID) // the answer was lost, perhaps not the row
		}
		return exportedAs(existing, err)
	}
	m.cfg.Queue.Kick(op.ID)
	return name, op, nil
}

// exportName is the reference of an export that names none. Images are the
// node's: an environment of the same name in another project has another one.
func exportName(s *Snapshot) string {
	repository := "remotegpu/snapshot/"
	if s.Project != DefaultProject {
		repository += s.Project + "/"
	}
	return repository + s.EnvName + ":" + s.Name
}

// exportedAs is the answer of an export that was asked for before.
func exportedAs(op *operation.Operation, err error) (string, *operation.Operation, error) {
	if err != nil {
		return "", nil, err
	}
	var args snapshotArgs
	if err := json.Unmarshal(op.Args, &args); err != nil {
		return "", nil, fmt.Errorf("read arguments of operation %s: %w", op.ID, err)
	}
	return args.Reference, op, nil
}
