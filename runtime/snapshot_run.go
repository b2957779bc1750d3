package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/cleanup"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// runSnapshot takes a snapshot. How is written down before the engine is asked:
// a commit that a dead daemon has begun is finished, a copy is begun anew, and
// what it has left paused goes on.
func (m *Manager) runSnapshot(ctx context.Context, task *operation.Task) error {
	var args snapshotArgs
	if err := json.Unmarshal(task.Op.Args, &args); err != nil {
		return fmt.Errorf("read arguments of operation %s: %w", task.Op.ID, err)
	}
	snapshot, err := m.cfg.Store.Snapshot(ctx, args.Snapshot)
	if errdefs.IsNotFound(err) { // unwound by an attempt that died before saying so
		gone := problem.New(problem.OperationInterrupted, "the snapshot could not be taken, and why was lost").WithHint("take it again")
		return final(gone, m.unlock(ctx, task.Op.Target, task.Op.ID))
	}
	if err != nil {
		return err
	}
	if snapshot.State == SnapshotCreating {
		spans := startSpans(task)
		layer, err := m.takeSnapshot(ctx, snapshot, task)
		if err == nil {
			spans.end(string(snapshot.Method))
			// It is there: a cancellation that comes now must not hide that.
			recording, cancel := cleanup.Context(ctx)
			defer cancel()
			_, _, err = m.cfg.Store.UpdateSnapshot(recording, snapshot.ID, nil, func(s *Snapshot) error {
				s.State, s.Layer, s.Freezes, s.Operation = SnapshotReady, layer, false, ""
				return nil
			})
		}
		if err != nil {
			if triedAgain(ctx, task, err) {
				return err
			}
			return m.failSnapshot(ctx, snapshot.ID, task.Op, err)
		}
	}
	task.SetResult("snapshot", snapshot.ID)
	recording, cancel := cleanup.Context(ctx)
	defer cancel()
	_, err = m.update(recording, task.Op.Target, func(env *Environment) error {
		if env.Operation != task.Op.ID {
			return errNotOurs
		}
		env.Operation = ""
		env.News = append(env.News, History{
			Time: time.Now(), Kind: HappenedSnapshot, Message: fmt.Sprintf("snapshot %s (%s) was taken of it", snapshot.Name, snapshot.ID),
		})
		return nil
	})
	if errors.Is(err, errNotOurs) || errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// takeSnapshot decides how to take a snapshot, writes that down, and does it.
func (m *Manager) takeSnapshot(ctx context.Context, snapshot *Snapshot, task *operation.Task) (Layer, error) {
	if snapshot.Method == SnapshotCopy { // begun by an attempt that died
		if err := m.undoCopy(ctx, snapshot); err != nil {
			return Layer{}, err
		}
		snapshot.Method = SnapshotUndecided
	}
	if snapshot.Method == SnapshotUndecided {
		method, freezes, err := m.snapshotMethod(ctx, snapshot.EnvID)
		if err != nil {
			return Layer{}, err
		}
		updated, _, err := m.cfg.Store.UpdateSnapshot(ctx, snapshot.ID, nil, func(s *Snapshot) error {
			s.Method, s.Freezes = method, freezes
			return nil
		})
		if err != nil {
			return Layer{}, err
		}
		*snapshot = *updated
	}
	if snapshot.Method == SnapshotCommit {
		task.Progress(operation.Progress{Step: "keeping the writable layer", Total: 1})
		return m.cfg.Snapshotter.CommitLayer(ctx, snapshot.EnvID, snapshot.ID)
	}
	defer m.health.freezing(snapshot.EnvID)()
	return m.cfg.Snapshotter.CopyLayer(ctx, snapshot.EnvID, snapshot.ID, task.Progress)
}

// snapshotMethod says how a snapshot of an environment is taken now, and
// whether that pauses it.
func (m *Manager) snapshotMethod(ctx context.Context, envID string) (method SnapshotMethod, freezes bool, err error) {
	status, err := m.cfg.Engine.Status(ctx, envID)
	if err != nil {
		return "", false, fmt.Errorf("ask for container of environment %s: %w", envID, err)
	}
	if !status.Running {
		return SnapshotCommit, false, nil
	}
	return SnapshotCopy, !status.Paused, nil
}

// undoCopy removes what a copy has left that was interrupted.
func (m *Manager) undoCopy(ctx context.Context, snapshot *Snapshot) error {
	if snapshot.Freezes {
		if err := m.cfg.Engine.Resume(ctx, snapshot.EnvID); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return m.cfg.Snapshotter.RemoveSnapshot(ctx, snapshot.ID)
}

// unwindSnapshot makes a snapshot that is not finished never have been. After a
// commit the environment goes on on top of it, and its files stay with that.
func (m *Manager) unwindSnapshot(ctx context.Context, snapshot *Snapshot) error {
	if err := m.undoCopy(ctx, snapshot); err != nil {
		return fmt.Errorf("undo snapshot %s: %w", snapshot.ID, err)
	}
	return m.cfg.Store.DeleteSnapshot(ctx, snapshot.ID)
}

// failSnapshot unwinds a snapshot and frees its environment. While that fails
// the queue has abandon do it again, and the reconciler after that.
func (m *Manager) failSnapshot(ctx context.Context, id string, op *operation.Operation, cause error) error {
	cause = fmt.Errorf("take snapshot %s: %w", id, asCancelled(ctx, cause))
	undo, cancel := cleanup.Context(ctx)
	defer cancel()
	if err := m.abandonSnapshots(undo, op.ID); err != nil {
		return errors.Join(cause, err)
	}
	return final(cause, m.unlock(ctx, op.Target, op.ID))
}

// abandonSnapshots gives up what an operation that will not go on has begun with
// snapshots: one that it was to take has never been, one that it was to export
// is free.
func (m *Manager) abandonSnapshots(ctx context.Context, opID string) error {
	if opID == "" {
		return nil
	}
	found, _, err := m.cfg.Store.Snapshots(ctx, SnapshotFilter{Operation: opID})
	if err != nil {
		return err
	}
	for _, snapshot := range found {
		if snapshot.State == SnapshotCreating {
			if err := m.unwindSnapshot(ctx, snapshot); err != nil {
				return err
			}
			continue
		}
		if err := m.cfg.Snapshotter.TidySnapshot(ctx, snapshot.ID); err != nil {
			return err
		}
		if err := m.freeSnapshot(ctx, snapshot.ID, opID); err != nil {
			return err
		}
	}
	return nil
}

// freeSnapshot ends an operation's hold of a snapshot.
func (m *Manager) freeSnapshot(ctx context.Context, id, opID string) error {
	_, _, err := m.cfg.Store.UpdateSnapshot(ctx, id, nil, func(s *Snapshot) error {
		if s.Operation != opID {
			return errNotOurs
		}
		s.Operation = ""
		return nil
	})
	if errors.Is(err, errNotOurs) {
		return nil
	}
	return ignoreNotFound(err)
}

// runRollBack replaces the writable layer of an environment. What ran is stopped
// and started again. That the layer was replaced is written down, so that an
// attempt after that does not throw away what was written since.
func (m *Manager) runRollBack(ctx context.Context, task *operation.Task) error {
	var args snapshotArgs
	if err := json.Unmarshal(task.Op.Args, &args); err != nil {
		return fmt.Errorf("read arguments of operation %s: %w", task.Op.ID, err)
	}
	env, err := m.cfg.Store.Environment(ctx, task.Op.Target)
	if err != nil {
		return ignoreNotFound(err)
	}
	if env.Operation != task.Op.ID {
		return nil // done by an attempt that died before saying so
	}
	m.fill(env)
	if env.RolledBack != task.Op.ID {
		if env, err = m.rollBack(ctx, env, args, task); err != nil {
			if triedAgain(ctx, task, err) {
				return err
			}
			cause := fmt.Errorf("roll back environment %s: %w", task.Op.Target, asCancelled(ctx, err))
			return final(cause, m.unlock(ctx, task.Op.Target, task.Op.ID))
		}
	}
	if args.Restart {
		task.Progress(operation.Progress{Step: "starting", Done: 2, Total: 3})
		return m.start(ctx, env, task)
	}
	return m.unlock(ctx, env.ID, task.Op.ID)
}

func (m *Manager) rollBack(ctx context.Context, env *Environment, args snapshotArgs, task *operation.Task) (*Environment, error) {
	snapshot, err := m.findSnapshot(ctx, env.Project, args.Snapshot, "", "snapshot")
	if err == nil {
		err = usable(snapshot, "snapshot")
	}
	if err != nil {
		return nil, err
	}
	task.Progress(operation.Progress{Step: "stopping", Total: 3})
	m.drawing.stop(env.ID)
	exit, err := m.cfg.Engine.Stop(ctx, env.ID, args.Timeout)
	stopped := err == nil
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	if env.Alive() {
		// It has stopped: a cancellation that comes now must not hide that.
		recording, cancel := cleanup.Context(ctx)
		defer cancel()
		if _, err := m.update(recording, env.ID, func(env *Environment) error {
			env.State, env.Problem, env.Ready, env.Paused, env.Health = Stopped, nil, false, false, HealthUnknown
			env.Applied = nil
			if stopped {
				env.Exit = &exit
			}
			return nil
		}); err != nil {
			return nil, err
		}
	}
	task.Progress(operation.Progress{Step: "replacing the writable layer", Done: 1, Total: 3})
	if err := m.cfg.Snapshotter.ResetLayer(ctx, env.ID, snapshot.ID); err != nil {
		return nil, err
	}
	recording, cancel := cleanup.Context(ctx)
	defer cancel()
	return m.update(recording, env.ID, func(env *Environment) error {
		env.RolledBack = task.Op.ID
		env.News = append(env.News, History{
			Time: time.Now(), Kind: HappenedRolledBack, Message: fmt.Sprintf("it was rolled back to snapshot %s (%s)", snapshot.Name, snapshot.ID),
		})
		return nil
	})
}

// runExport makes an image of a snapshot. Whatever it fails of, the engine has
// taken back what it began; the queue tries again what is transient and has
// abandon free the snapshot of the rest.
func (m *Manager) runExport(ctx context.Context, task *operation.Task) error {
	var args snapshotArgs
	if err := json.Unmarshal(task.Op.Args, &args); err != nil {
		return fmt.Errorf("read arguments of operation %s: %w", task.Op.ID, err)
	}
	snapshot, err := m.cfg.Store.Snapshot(ctx, args.Snapshot)
	if err != nil {
		return err
	}
	image, err := m.cfg.Snapshotter.ExportSnapshot(ctx, Export{
		Snapshot: snapshot.ID, Reference: args.Reference, Base: snapshot.Layer.Base, Created: snapshot.CreatedAt,
		Comment: fmt.Sprintf("snapshot %s of environment %s", snapshot.Name, snapshot.EnvName),
	}, task.Progress)
	if err != nil {
		return err
	}
	task.SetResult("image", image.Name)
	task.SetResult("digest", image.Digest)
	recording, cancel := cleanup.Context(ctx)
	defer cancel()
	return m.freeSnapshot(recording, snapshot.ID, task.Op.ID)
}
