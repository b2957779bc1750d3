package runtime

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"
	"github.com/oklog/ulid/v2"

	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// CreateRequest is a new environment.
type CreateRequest struct {
	RequestID string
	Name      string
	Project   string
	Labels    map[string]string
	Spec      Spec
}

// room refuses what makes something new while the disk of the database is full:
// what room is left there is for what ends and removes.
func (m *Manager) room() error {
	if m.cfg.Room == nil {
		return nil
	}
	return m.cfg.Room()
}

// Create checks the whole request, writes the environment with everything it
// will own in one transaction and has it made. A refused request took nothing.
func (m *Manager) Create(ctx context.Context, req CreateRequest) (*Environment, *operation.Operation, error) {
	if req.Project == "" {
		req.Project = DefaultProject
	}
	hash := hashOf(KindCreate, req)
	if op, err := m.known(ctx, req.Project, req.RequestID, hash); op != nil || err != nil {
		return m.answer(ctx, op, err)
	}
	if err := m.room(); err != nil {
		return nil, nil, err
	}
	snapshot, err := m.resolveSnapshot(ctx, req.Project, &req.Spec)
	if err != nil {
		return nil, nil, err
	}
	errs := []error{checkProject(req.Project), m.complete(req.Name, &req.Spec), checkLabels(req.Labels, nil)}
	if err := errors.Join(errs...); err != nil {
		return nil, nil, err
	}
	if _, _, err := m.cfg.Networks.Resolvers(); err != nil {
		return nil, nil, err
	}
	if _, err := m.cfg.Store.EnvironmentByName(ctx, req.Project, req.Name); err == nil {
		return nil, nil, nameExists(req.Name)
	} else if !errdefs.IsNotFound(err) {
		return nil, nil, err
	}
	release, err := m.claims.use(ctx, req.Spec.Image)
	if err != nil {
		return nil, nil, err
	}
	defer release()
	warnings, err := m.checkImage(ctx, &req.Spec, snapshot)
	if err != nil {
		return nil, nil, err
	}
	diskWarnings, err := m.checkDisk(ctx, &req.Spec.Resources)
	if err != nil {
		return nil, nil, err
	}
	warnings = append(append(warnings, diskWarnings...), m.nameWarnings(req.Name, req.Project)...)
	if err := m.wantGPUs(ctx, "", &req.Spec); err != nil {
		return nil, nil, err
	}
	now := time.Now()
	env := &Environment{
		ID: ulid.Make().String(), Name: req.Name, Project: req.Project, Node: m.cfg.Node,
		Labels: req.Labels, Spec: req.Spec, State: Creating, Held: true, Slot: -1,
		Warnings: warnings, CreatedAt: now, UpdatedAt: now,
		News: []History{{Time: now, Kind: HappenedCreated, Message: "it was asked for, from image " + req.Spec.Image + fromSnapshot(snapshot)}},
	}
	op := m.newOperation(KindCreate, env.Project, env.ID, req.RequestID, hash, createArgs{Name: env.Name, Image: env.Spec.Image, Snapshot: env.Spec.Snapshot})
	env.Operation = op.ID
	existing, err := m.reserve(fault.Within(ctx, "request ", KindCreate), env, op)
	if err != nil || existing != nil {
		if existing != nil {
			err = checkHash(existing, hash)
		} else {
			m.cfg.Queue.Kick(op.ID) // the answer was lost, perhaps not the row
		}
		return m.answer(ctx, existing, err)
	}
	m.fill(env)
	m.follow(env)
	m.changes.publish(env)
	m.cfg.Queue.Kick(op.ID)
	return env, op, nil
}

func fromSnapshot(snapshot *Snapshot) string {
	if snapshot == nil {
		return ""
	}
	return " and snapshot " + snapshot.Name + " (" + snapshot.ID + ")"
}

// nameExists is the refusal of a name that is in use.
func nameExists(name string) error {
	return problem.New(problem.EnvNameExists, "an environment called %q exists", name).WithField("name").
		WithHint("choose another name, or delete that one (remotegpu env rm %s)", name)
}

func checkProject(project string) error {
	if dnsLabel.MatchString(project) {
		return nil
	}
	return problem.New(problem.FieldInvalid, "%q is not a project name", project).WithField("project").
		WithHint("use 1 to 63 of a-z, 0-9 and -")
}

// reserve takes host ports and writes the environment, its operation, ports,
// GPUs and slot in one transaction.
func (m *Manager) reserve(ctx context.Context, env *Environment, op *operation.Operation) (existing *operation.Operation, err error) {
	slots, err := m.slots(ctx)
	if err != nil {
		return nil, err
	}
	lease, done, err := m.createLease(ctx, env)
	if err != nil {
		return nil, err
	}
	defer done()
	insert := func(ctx context.Context, mappings []port.Mapping) error {
		existing, err = m.cfg.Store.CreateEnvironment(ctx, env, op, mappings, slots, lease)
		if existing != nil {
			return errKnownRequest
		}
		env.Ports = mappings
		return err
	}
	owner := port.Owner{EnvID: env.ID, Project: env.Project}
	if _, err := m.cfg.Ports.Allocate(ctx, owner, env.Spec.Ports, insert); err != nil && !errors.Is(err, errKnownRequest) {
		return nil, err
	}
	return existing, nil
}
