package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"
)

// labelName is the label of a container that has its environment's name.
const labelName = "remotegpu.dev/name"

// RenameRequest asks for another name.
type RenameRequest struct {
	Project     string
	Environment string // id or name
	Etag        string // "": whatever it is
	Name        string
}

// Rename gives an environment another name, unique in its project. Its host
// name follows at the next start, unless one was asked for. A rename to the
// name it has changes nothing. ENV_NAME_INVALID, ENV_NAME_EXISTS,
// ENV_NOT_FOUND, ENV_BUSY, ETAG_MISMATCH.
func (m *Manager) Rename(ctx context.Context, req RenameRequest) (*Environment, error) {
	if err := checkName(req.Name, "name"); err != nil {
		return nil, err
	}
	env, err := m.Get(ctx, req.Project, req.Environment)
	if err != nil {
		return nil, err
	}
	renamed, err := m.update(ctx, env.ID, func(env *Environment) error {
		if err := checkFree(env, req.Etag); err != nil {
			return err
		}
		if env.Name == req.Name {
			return errNothingToDo
		}
		spec := env.Spec
		if !spec.OwnHostname && spec.Hostname == env.Name {
			spec.Hostname = req.Name
		}
		respec(env, &spec)
		env.News = append(env.News, History{
			Time: time.Now(), Kind: HappenedRenamed, Message: fmt.Sprintf("it was called %q before, %q from now on", env.Name, req.Name),
		})
		env.Name = req.Name
		return nil
	})
	if errors.Is(err, errNothingToDo) {
		return env, nil
	}
	if err != nil {
		return nil, err
	}
	if err := m.relabel(ctx, env.ID); err != nil {
		m.leave(ctx, slog.LevelWarn, "a container was not labelled with its new name", "environment", env.ID, "error", err)
	}
	return renamed, nil
}

// relabel makes the labels of an environment's container say what the store
// does. An operation that works on it may be starting it, which does so too.
func (m *Manager) relabel(ctx context.Context, id string) error {
	unlock, env, err := m.lockIdle(ctx, id)
	if env == nil {
		return err
	}
	defer unlock()
	if !env.Held {
		return nil
	}
	labels := containerLabels(env)
	status, err := m.cfg.Engine.Status(ctx, id)
	if err == nil {
		keepLeases(labels, status.Labels)
		err = m.cfg.Engine.Relabel(ctx, id, labels)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("label container of environment %s: %w", id, err)
	}
	return nil
}

// containerLabels are the labels of an environment's container.
func containerLabels(env *Environment) map[string]string {
	labels := map[string]string{
		labelName: env.Name, "remotegpu.dev/project": env.Project, "remotegpu.dev/node": env.Node,
		"remotegpu.dev/spec-version": specVersion,
	}
	labelLeases(labels, env.GPUs)
	return labels
}
