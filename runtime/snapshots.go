package runtime

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/oklog/ulid/v2"

	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// SnapshotState is how far a snapshot is.
type SnapshotState string

// The states. One that could not be taken has no row any more.
const (
	SnapshotCreating SnapshotState = "creating"
	SnapshotReady    SnapshotState = "ready"
	SnapshotDeleting SnapshotState = "deleting"
)

// SnapshotMethod is how a snapshot is taken.
type SnapshotMethod string

// The methods. A commit that was begun is finished, a copy is begun anew.
const (
	SnapshotUndecided SnapshotMethod = ""
	SnapshotCommit    SnapshotMethod = "commit" // the layer itself, of what does not run
	SnapshotCopy      SnapshotMethod = "copy"   // a copy of the layer, of what runs
)

// Snapshot is the root filesystem of an environment as it was at a moment. It
// outlives its environment.
type Snapshot struct {
	ID       string // ULID
	Name     string // DNS label, unique per environment
	Project  string
	Node     string
	Labels   map[string]string
	Revision int64 // counts changes, from 1; the API's etag
	EnvID    string
	// EnvName is what its environment is called, and was at last if EnvDeleted:
	// then another one may be called so.
	EnvName    string
	EnvDeleted bool
	State      SnapshotState
	Operation  string // id of the operation at work on it
	// Method and Freezes are the journal of taking it: written before the
	// engine is asked to. Freezes says that the environment is paused by the
	// copy, and by nobody else.
	Method    SnapshotMethod
	Freezes   bool
	Layer     Layer
	Spec      Spec // of the environment then
	CreatedAt time.Time
}

// SnapshotFilter selects snapshots. Zero fields select all.
type SnapshotFilter struct {
	Project   string
	EnvID     string
	GoneEnv   string // name of their environments, all of which are deleted
	Name      string
	Operation string // at work on them
	Labels    Selector
	Limit     int    // 0: no limit
	After     string // page cursor as returned by the store
}

// SnapshotStore keeps snapshots. Errors are errdefs kinds or *problem.Problem.
type SnapshotStore interface {
	// CreateSnapshot writes a snapshot, its operation and a change of its
	// environment in one transaction, as UpdateEnvironment does; change is
	// called first, and may complete the snapshot. SNAPSHOT_NAME_EXISTS.
	// EnvName and EnvDeleted of what is read are those of the environment.
	CreateSnapshot(ctx context.Context, snapshot *Snapshot, op *operation.Operation,
		change func(*Environment) error) (env *Environment, existing *operation.Operation, err error)
	// Snapshot returns one, NotFound (SNAPSHOT_NOT_FOUND).
	Snapshot(ctx context.Context, id string) (*Snapshot, error)
	// SnapshotByName returns one of an environment, NotFound.
	SnapshotByName(ctx context.Context, envID, name string) (*Snapshot, error)
	// Snapshots returns them, oldest first, and the cursor of the next page.
	Snapshots(ctx context.Context, filter SnapshotFilter) ([]*Snapshot, string, error)
	// UpdateSnapshot reads, changes and writes one in a single transaction, as
	// UpdateEnvironment does.
	UpdateSnapshot(ctx context.Context, id string, op *operation.Operation,
		change func(*Snapshot) error) (snapshot *Snapshot, existing *operation.Operation, err error)
	// DiscardSnapshot makes one SnapshotDeleting. check is called in the same
	// transaction, with the environments that an operation makes of it or rolls
	// back to it; its error is returned as it is and nothing is written.
	DiscardSnapshot(ctx context.Context, id string, check func(*Snapshot, []SnapshotUse) error) error
	// DeleteSnapshot forgets one. An absent one is forgotten.
	DeleteSnapshot(ctx context.Context, id string) error
}

// SnapshotUse is an operation that is not done and needs a snapshot.
type SnapshotUse struct {
	Environment string // its name
	Operation   string // its id
	Kind        string // KindCreate, KindRollBack
}

// snapshotArgs are the arguments of operations on snapshots.
type snapshotArgs struct {
	Snapshot  string        `json:"snapshot"`            // id; the store selects by it
	Timeout   time.Duration `json:"timeout,omitempty"`   // KindRollBack: nanoseconds between SIGTERM and SIGKILL
	Restart   bool          `json:"restart,omitempty"`   // KindRollBack: it ran
	Force     bool          `json:"force,omitempty"`     // KindRollBack: though it runs
	Reference string        `json:"reference,omitempty"` // KindExport
}

// CreateSnapshotRequest asks for a snapshot.
type CreateSnapshotRequest struct {
	RequestID   string
	Project     string
	Environment string // id or name
	Name        string // "": the time
	Labels      map[string]string
	Etag        string // of the environment; "": whatever it is
}

// CreateSnapshot has a snapshot taken.
func (m *Manager) CreateSnapshot(ctx context.Context, req CreateSnapshotRequest) (*Snapshot, *operation.Operation, error) {
	if req.Project == "" {
		req.Project = DefaultProject
	}
	hash := hashOf(KindSnapshot, req)
	if op, err := m.known(ctx, req.Project, req.RequestID, hash); op != nil || err != nil {
		return m.answerSnapshot(ctx, op, err)
	}
	if err := m.room(); err != nil {
		return nil, nil, err
	}
	if req.Name != "" {
		if err := checkSnapshotName(req.Name); err != nil {
			return nil, nil, err
		}
	}
	if err := checkLabels(req.Labels, nil); err != nil {
		return nil, nil, err
	}
	env, err := m.Get(ctx, req.Project, req.Environment)
	if err != nil {
		return nil, nil, err
	}
	if req.Name != "" {
		return m.createSnapshot(ctx, &req, hash, env)
	}
	// Of those in one second each but the first has a number too.
	second := time.Now().UTC().Format("s20060102-150405")
	req.Name = second
	for n := 2; ; n++ {
		snapshot, op, err := m.createSnapshot(ctx, &req, hash, env)
		if err == nil || problem.Of(err).Reason != problem.SnapshotNameExists {
			return snapshot, op, err
		}
		req.Name = fmt.Sprintf("%s-%d", second, n)
	}
}

func checkSnapshotName(name string) error {
	if !dnsLabel.MatchString(name) {
		return problem.New(problem.SnapshotNameInvalid, "%q is not a name for a snapshot", name).WithField("name").
			WithHint("use 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit, for example %q", "before-upgrade")
	}
	return likeAnID(problem.SnapshotNameInvalid, name, "name")
}

// createSnapshot writes down a snapshot and the operation that takes it.
func (m *Manager) createSnapshot(ctx context.Context, req *CreateSnapshotRequest, hash string, env *Environment) (*Snapshot, *operation.Operation, error) {
	snapshot := &Snapshot{
		ID: ulid.Make().String(), Name: req.Name, Project: env.Project, Node: m.cfg.Node, Labels: req.Labels,
		EnvID: env.ID, State: SnapshotCreating, CreatedAt: time.Now(),
	}
	op := m.newOperation(KindSnapshot, env.Project, env.ID, req.RequestID, hash, snapshotArgs{Snapshot: snapshot.ID})
	snapshot.Operation = op.ID
	updated, existing, err := m.cfg.Store.CreateSnapshot(fault.Within(ctx, "request ", KindSnapshot), snapshot, op, recorded(func(env *Environment) error {
		if err := checkFree(env, req.Etag); err != nil {
			return err
		}
		if err := checkMade(env); err != nil {
			return err
		}
		env.Operation = op.ID
		snapshot.EnvName, snapshot.Spec, snapshot.Layer.Image, snapshot.Layer.ImageDigest = env.Name, env.Spec, env.Spec.Image, env.Digest
		return nil
	}))
	if err != nil || existing != nil {
		if existing != nil {
			err = checkHash(existing, hash)
		} else {
			m.cfg.Queue.Kick(op.ID) // the answer was lost, perhaps not the row
		}
		return m.answerSnapshot(ctx, existing, err)
	}
	m.fill(updated)
	m.follow(updated)
	m.changes.publish(updated)
	m.cfg.Queue.Kick(op.ID)
	return snapshot, op, nil
}

// checkMade refuses an environment that has no writable layer.
func checkMade(env *Environment) error {
	if env.Held && !env.StartedAt.IsZero() {
		return nil
	}
	return neverMade(env)
}

// answerSnapshot returns the snapshot of an operation that exists already.
func (m *Manager) answerSnapshot(ctx context.Context, op *operation.Operation, err error) (*Snapshot, *operation.Operation, error) {
	if err != nil {
		return nil, nil, err
	}
	var args snapshotArgs
	if err := json.Unmarshal(op.Args, &args); err != nil {
		return nil, nil, fmt.Errorf("read arguments of operation %s: %w", op.ID, err)
	}
	snapshot, err := m.cfg.Store.Snapshot(ctx, args.Snapshot)
	if errdefs.IsNotFound(err) {
		return nil, op, nil
	}
	return snapshot, op, err
}

// Snapshot finds a snapshot by id, or as ENVIRONMENT/NAME. SNAPSHOT_NOT_FOUND,
// SNAPSHOT_AMBIGUOUS.
func (m *Manager) Snapshot(ctx context.Context, project, text string) (*Snapshot, error) {
	return m.findSnapshot(ctx, project, text, "", "snapshot")
}

// findSnapshot finds a snapshot by its name alone, too, where env is the id of
// its environment. field is that of the request.
func (m *Manager) findSnapshot(ctx context.Context, project, text, env, field string) (*Snapshot, error) {
	of, name, found := strings.Cut(text, "/")
	var snapshot *Snapshot
	err := error(errdefs.ErrNotFound)
	switch {
	case found:
		snapshot, err = m.snapshotOf(ctx, project, of, name, field)
	case env != "":
		snapshot, err = m.cfg.Store.SnapshotByName(ctx, env, text)
	}
	if id, ok := parseID(text); ok && errdefs.IsNotFound(err) {
		snapshot, err = m.cfg.Store.Snapshot(ctx, id)
	}
	if errdefs.IsNotFound(err) {
		return nil, problem.New(problem.SnapshotNotFound, "there is no snapshot %q", text).WithField(field).
			WithHint("name it by its id, or as ENVIRONMENT/NAME; list them with: remotegpu env snapshot ls")
	}
	return snapshot, err
}

// snapshotOf finds a snapshot by the id or name of its environment, and its
// own name. Where the environment of that name has none such, or there is no
// such environment, it is that of a deleted one, if only one has it. NotFound,
// SNAPSHOT_AMBIGUOUS.
func (m *Manager) snapshotOf(ctx context.Context, project, of, name, field string) (*Snapshot, error) {
	env, err := m.environmentID(ctx, project, of)
	if err == nil {
		var snapshot *Snapshot
		if snapshot, err = m.cfg.Store.SnapshotByName(ctx, env, name); err == nil {
			return snapshot, nil
		}
	}
	if !errdefs.IsNotFound(err) {
		return nil, err
	}
	gone, _, goneErr := m.cfg.Store.Snapshots(ctx, SnapshotFilter{Project: cmp.Or(project, DefaultProject), GoneEnv: of, Name: name})
	switch {
	case goneErr != nil:
		return nil, goneErr
	case len(gone) == 0:
		return nil, err
	case len(gone) == 1:
		return gone[0], nil
	}
	ids := make([]string, 0, len(gone))
	for _, snapshot := range gone {
		ids = append(ids, snapshot.ID)
	}
	return nil, problem.New(problem.SnapshotAmbiguous, "%d deleted environments called %q had a snapshot %q", len(gone), of, name).WithField(field).
		WithHint("name it by its id, one of %s; when each was taken shows: remotegpu env snapshot ls %s", strings.Join(ids, ", "), of)
}

// environmentID is the id of an environment; an id may be that of a deleted one.
func (m *Manager) environmentID(ctx context.Context, project, idOrName string) (string, error) {
	env, err := m.Get(ctx, project, idOrName)
	if err == nil {
		return env.ID, nil
	}
	if id, ok := parseID(idOrName); ok && errdefs.IsNotFound(err) {
		return id, nil
	}
	return "", err
}

// ListSnapshots returns snapshots, oldest first, and the cursor of the next
// page. environment is an id or a name, "" for all. A name that no environment
// has selects those of deleted ones that had it.
func (m *Manager) ListSnapshots(ctx context.Context, environment string, filter SnapshotFilter) ([]*Snapshot, string, error) {
	if environment != "" {
		id, err := m.environmentID(ctx, filter.Project, environment)
		if errdefs.IsNotFound(err) {
			gone := SnapshotFilter{Project: cmp.Or(filter.Project, DefaultProject), GoneEnv: environment, Limit: 1}
			if some, _, goneErr := m.cfg.Store.Snapshots(ctx, gone); goneErr != nil || len(some) == 0 {
				return nil, "", cmp.Or(goneErr, err)
			}
			filter.Project, filter.GoneEnv = gone.Project, environment
		} else if err != nil {
			return nil, "", err
		}
		filter.EnvID = id
	}
	return m.cfg.Store.Snapshots(ctx, filter)
}

// DeleteSnapshot removes a snapshot. What builds on it keeps its files.
func (m *Manager) DeleteSnapshot(ctx context.Context, project, text, etag string) error {
	snapshot, err := m.findSnapshot(ctx, project, text, "", "snapshot")
	if err != nil {
		return err
	}
	if err := m.checkMeant(ctx, project, text, snapshot); err != nil {
		return err
	}
	// Nobody begins anything with it from here on, and nobody has begun what would
	// miss it.
	if err := m.cfg.Store.DiscardSnapshot(ctx, snapshot.ID, func(s *Snapshot, uses []SnapshotUse) error {
		if etag != "" && etag != Etag(s.Revision) {
			return problem.New(problem.EtagMismatch, "snapshot %q has changed since it was read", s.Name).WithField("etag").
				WithHint("read it again and decide anew")
		}
		if s.Operation != "" {
			return snapshotBusy(s)
		}
		if len(uses) == 0 {
			return nil
		}
		use, what := uses[0], "being made from"
		if use.Kind == KindRollBack {
			what = "being rolled back to"
		}
		return problem.New(problem.SnapshotInUse, "environment %q is %s snapshot %q", use.Environment, what, s.Name).
			WithField("snapshot").WithHint("wait for it: remotegpu op watch %s", use.Operation)
	}); err != nil {
		return err
	}
	return m.finishDelete(ctx, snapshot.ID)
}

// checkMeant refuses to delete a snapshot of a deleted environment by a name that
// another one has now: that one may have had such a snapshot a moment ago, and a
// delete that is repeated would take this one as well.
func (m *Manager) checkMeant(ctx context.Context, project, text string, snapshot *Snapshot) error {
	of, _, found := strings.Cut(text, "/")
	if !found || !snapshot.EnvDeleted || isID(of) {
		return nil
	}
	_, err := m.Get(ctx, project, of)
	if errdefs.IsNotFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	return problem.New(problem.SnapshotNotFound, "environment %q has no snapshot %q, a deleted one of that name had", of, snapshot.Name).
		WithField("snapshot").WithHint("delete that by its id: remotegpu env snapshot rm %s", snapshot.ID)
}

// finishDelete removes what a snapshot has, and its row last. What fails a pass does
// again.
func (m *Manager) finishDelete(ctx context.Context, id string) error {
	err := m.cfg.Snapshotter.RemoveSnapshot(ctx, id)
	if err == nil {
		err = m.cfg.Store.DeleteSnapshot(ctx, id)
	}
	if err != nil {
		m.rest.disturb()
	}
	return err
}

func snapshotBusy(s *Snapshot) error {
	if s.State == SnapshotDeleting {
		return problem.New(problem.SnapshotBusy, "snapshot %q is being deleted", s.Name).WithField("snapshot").
			WithHint("use another one: remotegpu env snapshot ls")
	}
	return problem.New(problem.SnapshotBusy, "an operation works on snapshot %q", s.Name).WithField("snapshot").
		WithHint("wait for it: remotegpu op watch %s", s.Operation)
}

// usable refuses a snapshot that nothing can be made from.
func usable(s *Snapshot, field string) error {
	if s.State == SnapshotReady {
		return nil
	}
	p := *problem.Of(snapshotBusy(s))
	p.Field = field
	return &p
}
