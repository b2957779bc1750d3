package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

// UpdateRequest asks for a change of an environment that exists.
type UpdateRequest struct {
	RequestID   string
	Project     string
	Environment string   // id or name
	Etag        string   // "": whatever it is
	Fields      []string // paths of UpdatableFields that change
	Labels      map[string]string
	Spec        Spec // holds the fields that change
	// Restart starts its process again, should a field need it, and starts one
	// that is in error.
	Restart bool
	// Timeout is for the restart. nil: DefaultStopTimeout.
	Timeout *time.Duration
}

// Updated is what becomes of an UpdateRequest.
type Updated struct {
	Environment *Environment
	Operation   *operation.Operation // nil when nothing was to be done
	// RestartNeeded are the fields that its process will not have before it is
	// started again, those of earlier requests included.
	RestartNeeded []string
}

// updateArgs are the arguments that an operation keeps of an UpdateRequest.
type updateArgs struct {
	Fields        []string          `json:"fields"`
	Labels        map[string]string `json:"labels,omitempty"`
	Spec          Spec              `json:"spec"` // the whole one
	Restart       bool              `json:"restart,omitempty"`
	Timeout       time.Duration     `json:"timeout"` // nanoseconds
	RestartNeeded []string          `json:"restart_needed,omitempty"`
}

// updateTries is how often a request is checked anew because the environment
// has changed meanwhile.
const updateTries = 3

// Update changes labels and spec of an environment. Limits, ports, health check
// and restart policy are in force at once, all or nothing; what only a start
// can change waits for the next one, or is restarted for.
func (m *Manager) Update(ctx context.Context, req UpdateRequest) (Updated, error) {
	if req.Project == "" {
		req.Project = DefaultProject
	}
	hash := hashOf(KindUpdate, req)
	if op, err := m.known(ctx, req.Project, req.RequestID, hash); op != nil || err != nil {
		return m.answerUpdate(ctx, op, err)
	}
	changed, labels, err := selectFields(req.Fields)
	if err != nil {
		return Updated{}, err
	}
	if len(req.Fields) == 0 && !req.Restart {
		return Updated{}, problem.New(problem.FieldInvalid, "nothing is to be changed").WithField("update_mask").
			WithHint("set labels or fields of spec; name in update_mask those that are to have their default again")
	}
	for try := 1; ; try++ {
		updated, err := m.tryUpdate(ctx, &req, hash, changed, labels)
		if !errors.Is(err, errChangedMeanwhile) {
			return updated, err
		}
		if try == updateTries {
			return Updated{}, etagMismatch(req.Environment)
		}
	}
}

// errChangedMeanwhile ends a transaction on an environment that is not the one
// that was checked.
var errChangedMeanwhile = errors.New("the environment has changed meanwhile")

func (m *Manager) tryUpdate(ctx context.Context, req *UpdateRequest, hash string, changed []field, labels bool) (Updated, error) {
	env, err := m.Get(ctx, req.Project, req.Environment)
	if err != nil {
		return Updated{}, err
	}
	spec, err := m.changedSpec(ctx, env, req, changed)
	if err != nil {
		return Updated{}, err
	}
	args := newUpdateArgs(req, env, spec)
	op := m.newOperation(KindUpdate, env.Project, env.ID, req.RequestID, hash, args)
	updated, existing, err := m.cfg.Store.UpdateEnvironment(ctx, env.ID, op, func(now *Environment) error {
		if err := checkFree(now, req.Etag); err != nil {
			return err
		}
		if !sameForUpdate(now, env) {
			return errChangedMeanwhile
		}
		if len(changed) > 0 && (!now.Held || now.StartedAt.IsZero()) {
			return neverMade(now)
		}
		relabelled := labels && !maps.Equal(now.Labels, req.Labels)
		restarted := req.Restart && (len(now.RestartNeeded()) > 0 || broken(now))
		if sameSpec(&now.Spec, &spec) && !relabelled && !restarted {
			return errNothingToDo
		}
		now.Operation = op.ID
		return nil
	})
	switch {
	case errors.Is(err, errNothingToDo):
		return Updated{Environment: env, RestartNeeded: env.RestartNeeded()}, nil
	case err != nil:
		return Updated{}, err
	case existing != nil:
		return m.answerUpdate(ctx, existing, checkHash(existing, hash))
	}
	m.fill(updated)
	m.follow(updated)
	m.changes.publish(updated)
	m.cfg.Queue.Kick(op.ID)
	return Updated{Environment: updated, Operation: op, RestartNeeded: args.RestartNeeded}, nil
}

func newUpdateArgs(req *UpdateRequest, env *Environment, spec Spec) updateArgs {
	args := updateArgs{Fields: req.Fields, Labels: req.Labels, Spec: spec, Restart: req.Restart, Timeout: DefaultStopTimeout}
	if req.Timeout != nil {
		args.Timeout = *req.Timeout
	}
	after := *env
	respec(&after, &spec)
	if restarts := req.Restart && after.Alive(); !restarts {
		args.RestartNeeded = after.RestartNeeded()
	}
	return args
}

// broken says that an environment was made, and is in error: a start is what it
// waits for.
func broken(env *Environment) bool {
	return env.State == Failed && env.Held && !env.StartedAt.IsZero()
}

// sameForUpdate says that an update that was checked for one form of an
// environment is right for another.
func sameForUpdate(now, then *Environment) bool {
	return now.Alive() == then.Alive() && now.Held == then.Held && now.Name == then.Name &&
		reflect.DeepEqual(now.Spec, then.Spec) && reflect.DeepEqual(now.Applied, then.Applied)
}

// answerUpdate answers a repeated request.
func (m *Manager) answerUpdate(ctx context.Context, op *operation.Operation, err error) (Updated, error) {
	env, op, err := m.answer(ctx, op, err)
	if err != nil {
		return Updated{}, err
	}
	var args updateArgs
	if err := json.Unmarshal(op.Args, &args); err != nil {
		return Updated{}, fmt.Errorf("read arguments of operation %s: %w", op.ID, err)
	}
	return Updated{Environment: env, Operation: op, RestartNeeded: args.RestartNeeded}, nil
}

// changedSpec is the spec of an environment with the fields of a request, which
// are checked, and its labels, as a create checks them. What does not change is not: its mounts,
// ports or network policy may not be allowed any more.
func (m *Manager) changedSpec(ctx context.Context, env *Environment, req *UpdateRequest, changed []field) (Spec, error) {
	spec := env.Spec
	if err := checkLabels(req.Labels, env.Labels); err != nil {
		return spec, err
	}
	own := spec.OwnHostname || spec.Hostname != env.Name
	for _, f := range changed {
		f.copy(&spec, &req.Spec)
	}
	if len(changed) == 0 {
		return spec, nil
	}
	ports, mounts, network := spec.Ports, spec.Mounts, spec.Network
	if !hasField(changed, fieldPorts) {
		spec.Ports = nil
	} else {
		spec.Ports = withoutHeld(spec.Ports, env.Ports)
	}
	if !hasField(changed, fieldMounts) {
		spec.Mounts = nil
	}
	if !hasField(changed, fieldNetwork) {
		spec.Network = nil
	}
	if err := m.complete(env.Name, &spec); err != nil {
		return spec, err
	}
	if spec.Ports, spec.Mounts = ports, mounts; !hasField(changed, fieldNetwork) {
		spec.Network = network
	}
	if !hasField(changed, fieldHostname) {
		spec.OwnHostname = own
	}
	if spec.Resources.DiskBytes != env.Spec.Resources.DiskBytes || spec.Resources.DiskBestEffort != env.Spec.Resources.DiskBestEffort {
		// Refused now, not when the process does not start; what is not enforced
		// is told then.
		if _, err := m.checkDisk(ctx, &spec.Resources); err != nil {
			return spec, err
		}
	}
	if hasField(changed, fieldGPU) {
		if err := checkTargets(spec.Mounts, spec.GPU != nil); err != nil {
			return spec, err
		}
		if err := m.wantGPUs(ctx, env.ID, &spec); err != nil {
			return spec, err
		}
	}
	if hasLimits(changed) {
		return spec, m.checkLabelsAnew(ctx, &spec)
	}
	return spec, nil
}

// checkLabelsAnew holds a changed spec against what its image says of itself.
func (m *Manager) checkLabelsAnew(ctx context.Context, spec *Spec) error {
	image, err := m.cfg.Images.Image(ctx, spec.Image)
	if errdefs.IsNotFound(err) {
		return nil // it says nothing any more
	}
	if err != nil {
		return err
	}
	_, err = checkImageLabels(spec, image)
	return err
}

// withoutHeld are requests in which host ports that the environment holds are
// not asked for: their range may be another one by now.
func withoutHeld(requests []port.Request, held []port.Mapping) []port.Request {
	fresh := append([]port.Request(nil), requests...)
	for i := range fresh {
		for _, m := range held {
			if fresh[i].External == m.External && fresh[i].Protocol == m.Protocol {
				fresh[i].External = 0
			}
		}
	}
	return fresh
}

func mountsOf(s *Spec) *[]volume.Mount { return &s.Mounts }

// checkFree refuses a change of an environment that has changed since it was
// read, or that an operation works on.
func checkFree(env *Environment, etag string) error {
	if etag != "" && etag != Etag(env.Revision) {
		return etagMismatch(env.Name)
	}
	if env.Operation != "" {
		return busy(env)
	}
	return nil
}

func etagMismatch(name string) error {
	return problem.New(problem.EtagMismatch, "environment %q has changed since it was read", name).WithField("etag").
		WithHint("read it again and decide anew")
}

func busy(env *Environment) error {
	return problem.New(problem.EnvBusy, "another operation works on environment %q", env.Name).WithField("environment").
		WithHint("wait for it: remotegpu op watch %[1]s; or break it off: remotegpu op cancel %[1]s. A delete with force (remotegpu env rm --force %[2]s) need not wait", env.Operation, env.Name)
}

func neverMade(env *Environment) error {
	return problem.New(problem.EnvNotStartable, "environment %q was never made: its create failed", env.Name).
		WithField("environment").WithHint("delete it and create it anew")
}
