package runtime

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// thawInterrupted lets those environments go on that a snapshot has left paused
// whose daemon died. Nothing works on them yet. What fails here is tried again
// by the operation, and by the reconciler when that is given up.
func (m *Manager) thawInterrupted(ctx context.Context) {
	snapshots, _, err := m.cfg.Store.Snapshots(ctx, SnapshotFilter{})
	errs := []error{err}
	for _, snapshot := range snapshots {
		if snapshot.State == SnapshotCreating && snapshot.Freezes {
			errs = append(errs, ignoreNotFound(m.cfg.Engine.Resume(ctx, snapshot.EnvID)))
		}
	}
	if err := errors.Join(errs...); err != nil && ctx.Err() == nil {
		m.cfg.Log.ErrorContext(ctx, "environments may be paused by interrupted snapshots; it is tried again", "error", err)
	}
}

// observeSnapshots reads what the store and the engine know of snapshots.
func (m *Manager) observeSnapshots(ctx context.Context, o *observed) error {
	// The engine comes first: what it makes has a row before, and what it has
	// removed loses its row after.
	parts, err := m.cfg.Snapshotter.Snapshots(ctx)
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	rows, _, err := m.cfg.Store.Snapshots(ctx, SnapshotFilter{})
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	known := make(map[string]*Snapshot, len(rows))
	var errs []error
	for _, snapshot := range rows {
		known[snapshot.ID] = snapshot
		differs, err := m.observeSnapshot(ctx, snapshot)
		errs = append(errs, err)
		if differs != "" {
			o.snapshots = append(o.snapshots, snapshotFinding(snapshot, differs))
		}
	}
	var strangers []string
	for _, part := range parts {
		snapshot := known[part.ID]
		switch {
		case snapshot == nil && part.Whole:
			strangers = append(strangers, part.ID)
		case snapshot == nil:
			finding := snapshotFinding(&Snapshot{ID: part.ID}, "it was not finished, and nobody makes it any more")
			o.snapshots = append(o.snapshots, finding)
		case part.Begun && snapshot.State == SnapshotReady && snapshot.Operation == "":
			o.snapshots = append(o.snapshots, snapshotFinding(snapshot, "what was begun with it has left something, and nobody goes on with it"))
		}
	}
	if len(strangers) > 0 { // one may have been deleted since it was listed
		if parts, err = m.cfg.Snapshotter.Snapshots(ctx); err != nil {
			return errors.Join(append(errs, fmt.Errorf("list snapshots: %w", err))...)
		}
	}
	for _, part := range parts {
		if !slices.Contains(strangers, part.ID) {
			continue
		}
		o.strangeSnapshots++
		o.snapshots = append(o.snapshots, Finding{
			Kind: FoundSnapshot, Name: part.ID, Message: "no snapshot of this node's database is it", Action: ActionNone,
		})
	}
	return errors.Join(errs...)
}

func snapshotFinding(snapshot *Snapshot, message string) Finding {
	return Finding{
		Kind: FoundSnapshot, Name: snapshot.ID, EnvID: snapshot.EnvID, Message: message, Action: ActionRemove, Ours: true, step: stepSnapshot,
	}
}

// observeSnapshot says what is to be finished about a snapshot that has a row;
// "" when nothing is.
func (m *Manager) observeSnapshot(ctx context.Context, snapshot *Snapshot) (differs string, err error) {
	if snapshot.State == SnapshotDeleting {
		return "its deletion was not finished", nil
	}
	if snapshot.Operation == "" {
		return "", nil
	}
	op, err := m.cfg.Store.Operation(ctx, snapshot.Operation)
	switch {
	case errdefs.IsNotFound(err):
		return "an operation that is gone still holds it", nil
	case err != nil:
		return "", fmt.Errorf("read operation %s of snapshot %s: %w", snapshot.Operation, snapshot.ID, err)
	case op.State.Done(): // it lets go of a snapshot before it is done
		return fmt.Sprintf("an operation that has %s still holds it", verbOf(op.State)), nil
	}
	return "", nil
}

// mendSnapshot finishes what was found about a snapshot, as it is by now.
func (m *Manager) mendSnapshot(ctx context.Context, id string) error {
	snapshot, err := m.cfg.Store.Snapshot(ctx, id)
	if errdefs.IsNotFound(err) {
		return m.removeHalfMade(ctx, id)
	}
	if err != nil {
		return err
	}
	// It is taken under the lock of its environment, exported under its own.
	waiting, cancel := context.WithTimeout(ctx, idleWait)
	defer cancel()
	for _, key := range []string{snapshot.EnvID, snapshot.ID} {
		unlock, err := m.locks.Lock(waiting, key)
		if err != nil {
			return ctx.Err() // an operation is at work there; the next pass looks again
		}
		defer unlock()
	}
	if snapshot, err = m.cfg.Store.Snapshot(ctx, id); err != nil {
		return ignoreNotFound(err)
	}
	if snapshot.State == SnapshotDeleting {
		return m.finishDelete(ctx, id)
	}
	differs, err := m.observeSnapshot(ctx, snapshot)
	switch {
	case err != nil:
		return err
	case differs != "":
		return m.abandonSnapshots(ctx, snapshot.Operation)
	case snapshot.Operation == "":
		return m.cfg.Snapshotter.TidySnapshot(ctx, id)
	}
	return nil // an operation works on it by now
}

// removeHalfMade removes what is left of a snapshot without a row. A whole one
// is somebody's files: the database may have been lost.
func (m *Manager) removeHalfMade(ctx context.Context, id string) error {
	parts, err := m.cfg.Snapshotter.Snapshots(ctx)
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	if !slices.ContainsFunc(parts, func(p SnapshotPart) bool { return p.ID == id && !p.Whole }) {
		return nil
	}
	m.cfg.Log.InfoContext(ctx, "removing what a snapshot left behind", "snapshot", id)
	return m.cfg.Snapshotter.RemoveSnapshot(ctx, id)
}

// reportSnapshots keeps a condition while there are snapshots that the database
// does not know.
func (m *Manager) reportSnapshots(o *observed) {
	var stranger error
	if o.strangeSnapshots > 0 {
		stranger = problem.New(problem.SnapshotUnknown, "%d snapshots in containerd belong to no row of this node's database", o.strangeSnapshots).
			WithHint("see remotegpu node reconcile --dry-run; if the database was lost restore it, otherwise remove those with the label remotegpu.dev/snapshot with ctr")
	}
	m.setCondition(problem.SnapshotUnknown, stranger)
}
