package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/cleanup"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// runUpdate makes the host follow first what may be refused, then the store,
// then what cannot be. Each step can be repeated.
func (m *Manager) runUpdate(ctx context.Context, task *operation.Task) error {
	var args updateArgs
	if err := json.Unmarshal(task.Op.Args, &args); err != nil {
		return fmt.Errorf("read arguments of operation %s: %w", task.Op.ID, err)
	}
	changed, labels, err := selectFields(args.Fields)
	if err != nil {
		return err
	}
	env, err := m.cfg.Store.Environment(ctx, task.Op.Target)
	if err != nil {
		return ignoreNotFound(err)
	}
	if env.Operation != task.Op.ID {
		return nil // done by an attempt that died before saying so
	}
	m.fill(env)
	spans := startSpans(task)
	if env.Alive() && hasLimits(changed) {
		err := m.cfg.Engine.Update(ctx, env.ID, args.Spec.Resources)
		if err != nil && !errdefs.IsNotFound(err) { // one that has ended gets them at its next start
			return m.failUpdate(ctx, env, task, fmt.Errorf("change limits of environment %s: %w", env.ID, err))
		}
		spans.end("limits")
	}
	if env.Held && hasField(changed, fieldNetwork) {
		after := *env
		after.Spec.Network = args.Spec.Network
		if err := m.setPolicy(ctx, &after); err != nil {
			return m.failUpdate(ctx, env, task, err)
		}
		spans.end("policy")
	}
	if hasField(changed, fieldGPU) && m.leasesNow(env) {
		if env, err = m.changeLeases(ctx, env, args.Spec.GPU); err != nil {
			return m.failUpdate(ctx, env, task, err)
		}
		spans.end("gpus")
	}
	return m.recordUpdate(ctx, env, task, &args, changed, labels, spans)
}

// leasesNow says that a change of what an environment asks for of GPUs changes
// its leases at once, not with the next start.
func (m *Manager) leasesNow(env *Environment) bool {
	return env.Held && !env.Alive() && (!m.cfg.GPU.ReleaseOnStop || !env.RestartAt.IsZero())
}

// recordUpdate does what follows the limits.
func (m *Manager) recordUpdate(ctx context.Context, env *Environment, task *operation.Task, args *updateArgs, changed []field, labels bool,
	spans *spans,
) (err error) {
	// The host has followed: a cancellation that comes now must not hide that.
	recording, cancel := cleanup.Context(ctx)
	defer cancel()
	restart, publish := args.Restart && (env.Alive() || broken(env)), hasField(changed, fieldPorts)
	apply := func(env *Environment) error {
		if env.Operation != task.Op.ID {
			return errNotOurs
		}
		applyUpdate(env, args, changed, labels)
		if restart && startsNow(env) {
			env.RestartCount = 0 // somebody starts it
		}
		if !restart && !publish {
			leave(env, task.Op.ID)
		}
		return nil
	}
	if publish {
		if err := calledOff(ctx, task); err != nil {
			return m.failUpdate(ctx, env, task, err)
		}
		env, err = m.changePorts(recording, env, args.Spec.Ports, apply)
	} else {
		env, err = m.update(recording, env.ID, apply)
	}
	switch {
	case errors.Is(err, errNotOurs): // a forced delete
		return nil
	case err != nil:
		return m.failUpdate(ctx, env, task, err)
	}
	spans.end("record")
	if publish {
		if err := m.publish(recording, env); err != nil {
			return m.failPublish(recording, env, task, err)
		}
		spans.end("publish")
	}
	if restart && startsNow(env) {
		return m.restartNow(ctx, env, task, args.Timeout)
	}
	return m.unlock(recording, env.ID, task.Op.ID)
}

// startsNow says that an update with a restart, which is applied, starts a
// process.
func startsNow(env *Environment) bool { return len(env.RestartNeeded()) > 0 || broken(env) }

// applyUpdate is what an update means for the environment.
func applyUpdate(env *Environment, args *updateArgs, changed []field, labels bool) {
	var what []string
	if labels && !maps.Equal(env.Labels, args.Labels) {
		env.Labels, what = args.Labels, []string{FieldLabels}
	}
	spec := env.Spec
	spec.OwnHostname = args.Spec.OwnHostname
	for _, f := range changed {
		if !f.same(&spec, &args.Spec) {
			what = append(what, f.path)
		}
		f.copy(&spec, &args.Spec)
	}
	before := env.Spec
	respec(env, &spec)
	checked := !equal(spec.HealthCheck, before.HealthCheck)
	if checked && env.State == Running {
		env.Health, env.HealthDetail = firstHealth(env), ""
	}
	if checked || !equal(spec.Restart, before.Restart) {
		planAnew(env, before.Restart, time.Now())
	}
	if len(what) > 0 {
		env.News = append(env.News, History{Time: time.Now(), Kind: HappenedUpdated, Message: "changed: " + strings.Join(what, ", ")})
	}
}

// changePorts takes and releases host ports in the transaction that records the
// rest. On error it returns the environment as it was.
func (m *Manager) changePorts(ctx context.Context, env *Environment, requests []port.Request, apply func(*Environment) error) (*Environment, error) {
	owner := port.Owner{EnvID: env.ID, Project: env.Project}
	var changed *Environment
	err := m.cfg.Ports.Reallocate(ctx, owner, env.Ports, requests, func(ctx context.Context, change port.Change) (err error) {
		for i := range change.Add {
			change.Add[i].Status = port.Active
		}
		// A host port is given back when nothing leads to it any more.
		if err := m.withdraw(ctx, env, change.Drop); err != nil {
			return err
		}
		changed, err = m.storePorts(ctx, env.ID, change, "", apply)
		if err != nil && len(change.Drop) > 0 {
			m.publishAgain(ctx, env)
		}
		return err
	})
	if err != nil {
		return env, fmt.Errorf("change ports of environment %s: %w", env.ID, err)
	}
	return changed, nil
}

// withdraw makes some of an environment's ports unreachable.
func (m *Manager) withdraw(ctx context.Context, env *Environment, dropped []port.Mapping) error {
	if len(dropped) == 0 {
		return nil
	}
	kept := slices.DeleteFunc(livePorts(env), func(m port.Mapping) bool {
		return slices.ContainsFunc(dropped, func(d port.Mapping) bool { return d.ID == m.ID })
	})
	if err := m.cfg.Networks.Publish(ctx, env.ID, env.Address, kept); err != nil {
		return fmt.Errorf("withdraw ports of environment %s: %w", env.ID, err)
	}
	return nil
}

// failUpdate ends an update that was refused: the host has again what the store
// says.
func (m *Manager) failUpdate(ctx context.Context, env *Environment, task *operation.Task, cause error) error {
	if triedAgain(ctx, task, cause) {
		return cause
	}
	cause = asCancelled(ctx, cause)
	ctx, cancel := cleanup.Context(ctx)
	defer cancel()
	if err := m.undoUpdate(ctx, env, task.Op); err != nil {
		return errors.Join(cause, err)
	}
	return operation.Permanent(cause)
}

// undoUpdate makes the host follow the store and frees the environment. What
// fails here in the firewall the reconciler mends.
func (m *Manager) undoUpdate(ctx context.Context, env *Environment, op *operation.Operation) error {
	env, err := m.cfg.Store.Environment(ctx, env.ID)
	if err != nil {
		return ignoreNotFound(err)
	}
	if env.Alive() {
		err := m.cfg.Engine.Update(ctx, env.ID, env.Spec.Resources)
		switch {
		case err == nil, errdefs.IsNotFound(err):
		case errdefs.IsFailedPrecondition(err): // it will not be otherwise the next time
			m.cfg.Log.ErrorContext(ctx, "the limits of an environment could not be restored", "environment", env.ID, "error", err)
		default:
			return fmt.Errorf("restore limits of environment %s: %w", env.ID, err)
		}
	}
	m.fill(env)
	if m.leasesNow(env) {
		if _, err := m.changeLeases(ctx, env, env.Spec.GPU); err != nil {
			m.cfg.Log.ErrorContext(ctx, "the former GPUs are not the environment's again; its next start will try again", "environment", env.ID, "error", err)
		}
	}
	if err := m.setPolicy(ctx, env); err != nil && env.Held {
		m.leave(ctx, slog.LevelError, "the former network policy is not in force again", "environment", env.ID, "error", err)
	}
	return m.unlock(ctx, env.ID, op.ID)
}

// failPublish ends an update whose ports are the environment's and could not be
// made reachable: the reconciler goes on trying.
func (m *Manager) failPublish(ctx context.Context, env *Environment, task *operation.Task, cause error) error {
	if triedAgain(ctx, task, cause) {
		return cause
	}
	cause = asCancelled(ctx, cause)
	if err := m.unlock(ctx, env.ID, task.Op.ID); err != nil {
		return errors.Join(cause, err)
	}
	return operation.Permanent(cause)
}

// clear removes what a former spec of an environment named and the present one
// does not. Its process has ended.
func (m *Manager) clear(ctx context.Context, env *Environment) error {
	if !env.Clear {
		return nil
	}
	if len(env.Spec.Mounts) == 0 {
		if err := m.cfg.Volumes.Unstage(ctx, env.ID); err != nil {
			return fmt.Errorf("remove former mounts of environment %s: %w", env.ID, err)
		}
	}
	if env.Spec.Desktop == nil {
		if err := m.cfg.Desktops.Remove(ctx, env.ID); err != nil {
			return fmt.Errorf("remove former desktop of environment %s: %w", env.ID, err)
		}
	}
	return nil
}
