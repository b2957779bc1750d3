package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"

	"github.com/remotegpu/remotegpu/internal/cleanup"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// runPort adds, changes or removes one mapping: in the store, then on the host,
// but what goes leads nowhere before it is given back. Each step can be
// repeated.
func (m *Manager) runPort(ctx context.Context, task *operation.Task) error {
	var args portArgs
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
	task.SetResult("mapping", args.Mapping)
	spans := startSpans(task)
	if err := calledOff(ctx, task); err != nil {
		return m.failPublish(ctx, env, task, err)
	}
	// What is recorded is made reachable and told, whoever cancels from here on.
	recording, cancel := cleanup.Context(ctx)
	defer cancel()
	changed, err := m.changePort(recording, env, task.Op, &args)
	switch {
	case errors.Is(err, errNotOurs): // a forced delete
		return nil
	case err != nil:
		return m.failPublish(ctx, env, task, ofOnePort(err))
	}
	spans.end("record")
	if err := m.publish(recording, changed); err != nil {
		return m.failPublish(recording, changed, task, err)
	}
	spans.end("publish")
	if at := slices.IndexFunc(changed.Ports, func(p port.Mapping) bool { return p.ID == args.Mapping }); at >= 0 {
		task.SetResult("host_port", strconv.Itoa(int(changed.Ports[at].External)))
	}
	return m.unlock(recording, env.ID, task.Op.ID)
}

// calledOff is why a change that is about to be recorded is not to be, nil when it
// is. What an earlier attempt began may be recorded already.
func calledOff(ctx context.Context, task *operation.Task) error {
	if task.Op.Attempts > 1 {
		return nil
	}
	return context.Cause(ctx)
}

// changePort changes the store as an operation asks, and returns the
// environment as it is then.
func (m *Manager) changePort(ctx context.Context, env *Environment, op *operation.Operation, args *portArgs) (*Environment, error) {
	at := slices.IndexFunc(env.Ports, func(p port.Mapping) bool { return p.ID == args.Mapping })
	if (op.Kind == KindPortCreate) == (at >= 0) {
		return env, nil // done by an attempt that died before it went on
	}
	if op.Kind == KindPortCreate {
		return m.addPort(ctx, env, op, args)
	}
	mapping := env.Ports[at]
	index := m.cfg.Ports.RequestOf(env.Ports, env.Spec.Ports, mapping)
	ours := func(change func(*Spec)) func(*Environment) error {
		return func(now *Environment) error {
			if now.Operation != op.ID {
				return errNotOurs
			}
			respecPorts(now, index, change)
			return nil
		}
	}
	if op.Kind == KindPortDelete {
		return m.dropPorts(ctx, env, []port.Mapping{mapping}, "", ours(func(spec *Spec) {
			spec.Ports = slices.Delete(spec.Ports, index, index+1)
		}))
	}
	mapping.SetTerms(args.Request)
	return m.storePorts(ctx, env.ID, port.Change{Describe: []port.Mapping{mapping}}, "", ours(func(spec *Spec) {
		request := &spec.Ports[index]
		request.Description, request.Sources, request.ExpiresAt = args.Request.Description, args.Request.Sources, args.Request.ExpiresAt
	}))
}

// respecPorts changes the list of ports of an environment's spec, unless the
// mapping comes of none of them.
func respecPorts(env *Environment, index int, change func(*Spec)) {
	if index < 0 || index >= len(env.Spec.Ports) {
		return
	}
	spec := env.Spec
	spec.Ports = slices.Clone(spec.Ports) // lists of environments share it
	change(&spec)
	respec(env, &spec)
}

func (m *Manager) addPort(ctx context.Context, env *Environment, op *operation.Operation, args *portArgs) (changed *Environment, err error) {
	request := args.Request
	request.ID = args.Mapping
	owner := port.Owner{EnvID: env.ID, Project: env.Project}
	_, err = m.cfg.Ports.Allocate(ctx, owner, []port.Request{request}, func(ctx context.Context, added []port.Mapping) (err error) {
		for i := range added {
			added[i].Status = port.Active
		}
		changed, err = m.storePorts(ctx, env.ID, port.Change{Add: added}, "", func(now *Environment) error {
			if now.Operation != op.ID {
				return errNotOurs
			}
			spec := now.Spec
			spec.Ports = append(slices.Clone(spec.Ports), args.Request)
			respec(now, &spec)
			return nil
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("add port to environment %s: %w", env.ID, err)
	}
	return changed, nil
}

// dropPorts makes mappings unreachable and releases them. When the store
// refuses they lead where they did again.
func (m *Manager) dropPorts(ctx context.Context, env *Environment, dropped []port.Mapping, why string, apply func(*Environment) error) (*Environment, error) {
	if err := m.withdraw(ctx, env, dropped); err != nil {
		return nil, err
	}
	changed, err := m.storePorts(ctx, env.ID, port.Change{Drop: dropped}, why, apply)
	if err != nil {
		m.publishAgain(ctx, env)
		return nil, err
	}
	m.cfg.Ports.Released(dropped)
	return changed, nil
}

// publishAgain undoes a withdrawal.
func (m *Manager) publishAgain(ctx context.Context, env *Environment) {
	if err := m.publish(ctx, env); err != nil {
		m.leave(ctx, slog.LevelError, "ports could not be published again", "environment", env.ID, "error", err)
	}
}

// storePorts records a change of an environment's mappings with what else it
// means for the environment, and tells the watchers.
func (m *Manager) storePorts(ctx context.Context, id string, change port.Change, why string, apply func(*Environment) error) (*Environment, error) {
	changed, _, err := m.cfg.Store.ChangePorts(ctx, id, change, recorded(func(env *Environment) error {
		if err := apply(env); err != nil {
			return err
		}
		env.News = append(env.News, newsOfPorts(&change, why)...)
		return nil
	}))
	if err != nil {
		return nil, err
	}
	m.fill(changed)
	m.follow(changed)
	m.changes.publish(changed)
	return changed, nil
}
