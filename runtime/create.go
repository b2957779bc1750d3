package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/cleanup"
	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// specVersion says how a container was rendered, so that a later release can
// tell containers of an earlier one.
const specVersion = "1"

// runCreate makes an environment that the store has as creating. It is started
// again when the daemon died in the middle; then it first removes what the
// earlier attempt left. On failure everything is given back and the
// environment is in error.
func (m *Manager) runCreate(ctx context.Context, task *operation.Task) error {
	env, err := m.cfg.Store.Environment(ctx, task.Op.Target)
	if errdefs.IsNotFound(err) {
		return nil // deleted
	}
	if err != nil {
		return err
	}
	if env.State != Creating { // done by an attempt that died before saying so
		return createOutcome(env)
	}
	if env.Operation != task.Op.ID { // a forced delete takes back what an attempt has made
		return operation.Permanent(operation.ErrCancelled)
	}
	m.fill(env)
	if task.Op.Attempts > 1 {
		if err := m.teardown(ctx, env); err != nil {
			if triedAgain(ctx, task, err) {
				return err
			}
			return m.failCreate(ctx, env, task.Op.ID, fmt.Errorf("remove what an interrupted attempt left: %w", err))
		}
	}
	if err := m.make(ctx, env, task); err != nil {
		if triedAgain(ctx, task, err) {
			return err // the next attempt begins anew
		}
		return m.failCreate(ctx, env, task.Op.ID, err)
	}
	return nil
}

// createOutcome tells what became of a create that is not at work any more.
func createOutcome(env *Environment) error {
	if env.State == Failed && env.StartedAt.IsZero() && env.Problem != nil {
		p := env.Problem
		return operation.Permanent(&problem.Problem{Reason: problem.Reason(p.Reason), Message: p.Message, Field: p.Field, Hint: p.Hint})
	}
	return nil
}

// make takes every step of a create. What it took before a step failed is
// given back by teardown, which serves failures, crashes and deletes alike.
func (m *Manager) make(ctx context.Context, env *Environment, task *operation.Task) error {
	spans := startSpans(task)
	image, create, err := m.origin(ctx, env, task)
	if err != nil {
		return err
	}
	spans.end("image")
	task.Progress(operation.Progress{Step: "preparing", Done: 1, Total: 3})
	if env, err = m.startLeases(ctx, env); err != nil { // the pull may have taken hours
		return err
	}
	container, err := m.prepare(ctx, env, spans, create)
	if err != nil {
		return err
	}
	spans.end("prepare")
	task.Progress(operation.Progress{Step: "starting", Done: 2, Total: 3})
	m.creating.enter(env.ID, 1)
	defer m.creating.leave(env.ID) // after the store says that it runs
	if err := m.startPublished(ctx, env, container, spans); err != nil {
		return err
	}
	spans.end("start")
	running, err := m.cfg.Store.ActivateEnvironment(ctx, env.ID, recorded(func(env *Environment) error {
		env.State, env.Digest, env.StartedAt, env.Disk, env.GPURun = Running, image.Digest, time.Now(), container.Disk, container.GPURun
		env.Login = loginOf(image.Labels)
		leave(env, task.Op.ID)
		env.Problem, env.Exit, env.Health = nil, nil, firstHealth(env)
		return nil
	}))
	if err != nil {
		return fmt.Errorf("record that environment %s runs: %w", env.ID, err)
	}
	spans.end("record")
	m.started(running)
	return nil
}

// obtainImage returns the environment's image, pulling it when the policy says
// so: as one of the pulls that are allowed at once, and while others have the
// worker.
func (m *Manager) obtainImage(ctx context.Context, env *Environment, task *operation.Task) (Image, error) {
	if env.Spec.PullPolicy != PullAlways {
		image, err := m.cfg.Images.Image(ctx, env.Spec.Image)
		if err == nil {
			return m.takeImage(ctx, env, image)
		}
		if !errdefs.IsNotFound(err) || env.Spec.PullPolicy == PullNever {
			return image, err
		}
	}
	var image Image
	if err := operation.IdleAs(ctx, KindPull, func() (err error) {
		if env.Spec.PullPolicy != PullAlways { // somebody may have pulled it since
			if image, err = m.cfg.Images.Image(ctx, env.Spec.Image); !errdefs.IsNotFound(err) {
				return err
			}
		}
		if image, err = m.pullImage(ctx, env.Spec.Image, nil, task); err != nil {
			return fmt.Errorf("pull image %s: %w", env.Spec.Image, err)
		}
		return nil
	}); err != nil {
		return Image{}, err
	}
	return m.takeImage(ctx, env, image)
}

// takeImage names an image that was found, and holds the spec against it: the
// request may have seen another one by that name, or none.
func (m *Manager) takeImage(ctx context.Context, env *Environment, image Image) (Image, error) {
	image, err := m.keepName(ctx, env, image)
	if err == nil {
		_, err = checkImageLabels(&env.Spec, image)
	}
	return image, err
}

// ImageChanged is the refusal to make a container of, or to remove, another image
// than the one that was looked at.
func ImageChanged(name string) error {
	return problem.New(problem.ImageChanged, "the name of image %s was set anew meanwhile", name).
		WithField("spec.image").WithHint("try again when nobody builds, tags, imports or pulls that image")
}

// keepName has an image that was asked for by its digest, and is here under a tag,
// stay under the name that the environment has for it, as a pull would have it:
// the tag may name another one tomorrow.
func (m *Manager) keepName(ctx context.Context, env *Environment, image Image) (Image, error) {
	if image.Name == env.Spec.Image {
		return image, nil
	}
	named, err := m.cfg.Images.Tag(ctx, image.Name, env.Spec.Image)
	if err != nil {
		return Image{}, fmt.Errorf("name image %s: %w", env.Spec.Image, err)
	}
	return named, nil
}

// prepare takes what a start needs: network, mounts, desktop and files, the
// network beside the rest. create, when not nil, makes the container record.
func (m *Manager) prepare(ctx context.Context, env *Environment, spans *spans,
	create func(context.Context, Container) error,
) (Container, error) {
	var container Container
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer spans.beside("network")()
		if err := m.cfg.Networks.Attach(groupCtx, env.ID, env.Slot); err != nil {
			return fmt.Errorf("attach network of environment %s: %w", env.ID, err)
		}
		// In force before a process is there.
		return m.setPolicy(groupCtx, env)
	})
	group.Go(func() (err error) {
		defer spans.beside("container")()
		container, err = m.render(groupCtx, env)
		if err != nil || create == nil {
			return err
		}
		if err := create(groupCtx, container); err != nil {
			return fmt.Errorf("create container of environment %s: %w", env.ID, err)
		}
		return nil
	})
	return container, group.Wait()
}

// startPublished starts the container and publishes its ports beside that: a
// rule that is there before the process is refused by the environment, as it
// would be a moment later, before the process listens. When one of the two
// fails the other is ended or taken back by the caller. AlreadyExists: it runs,
// and its ports are published.
func (m *Manager) startPublished(ctx context.Context, env *Environment, container Container, spans *spans) error {
	var running error
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer spans.beside("publish")()
		return m.publish(groupCtx, env)
	})
	group.Go(func() error {
		_, err := m.cfg.Engine.Start(groupCtx, container)
		if errdefs.IsAlreadyExists(err) {
			running = err
			return nil
		}
		if err != nil {
			return fmt.Errorf("start container of environment %s: %w", env.ID, err)
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		return err
	}
	return running
}

// publish makes the environment's ports reachable, those that are not over.
func (m *Manager) publish(ctx context.Context, env *Environment) error {
	if err := m.cfg.Networks.Publish(ctx, env.ID, env.Address, livePorts(env)); err != nil {
		return fmt.Errorf("publish ports of environment %s: %w", env.ID, err)
	}
	return nil
}

// setPolicy puts an environment's network policy in force.
func (m *Manager) setPolicy(ctx context.Context, env *Environment) error {
	if err := m.cfg.Networks.SetPolicy(ctx, declaredPolicy(env)); err != nil {
		return fmt.Errorf("set network policy of environment %s: %w", env.ID, err)
	}
	return nil
}

// render gathers everything the engine needs to know of an environment, and
// stages the mounts it names.
func (m *Manager) render(ctx context.Context, env *Environment) (Container, error) {
	spec := &env.Spec
	servers, search, err := m.cfg.Networks.Resolvers()
	if err != nil {
		return Container{}, err
	}
	if err := fault.Point(ctx, "resolvers read"); err != nil {
		return Container{}, err
	}
	mounts, err := m.files.write(env.ID, spec.Hostname, env.Address, env.Address6, servers, search)
	if err != nil {
		return Container{}, err
	}
	if err := fault.Point(ctx, "files written"); err != nil {
		return Container{}, err
	}
	variables := nodeVariables(env)
	if spec.Desktop != nil {
		desktop := *spec.Desktop
		desktop.Password = spec.Env[passwordVariable]
		desktopMounts, desktopEnv, err := m.cfg.Desktops.Prepare(ctx, env.ID, desktop)
		if err != nil {
			return Container{}, fmt.Errorf("prepare desktop of environment %s: %w", env.ID, err)
		}
		mounts, variables = append(mounts, desktopMounts...), append(variables, desktopEnv...)
	}
	if len(spec.Mounts) > 0 {
		staged, err := m.cfg.Volumes.Stage(ctx, env.ID, spec.Mounts)
		if err != nil {
			return Container{}, fmt.Errorf("stage mounts of environment %s: %w", env.ID, err)
		}
		mounts = append(mounts, staged...)
	}
	resources := spec.Resources
	var disk DiskLimit
	if resources.DiskBytes, disk, err = m.diskLimit(ctx, &spec.Resources); err != nil {
		return Container{}, fmt.Errorf("limit disk of environment %s: %w", env.ID, err)
	}
	gpus, run, err := m.prepareGPUs(ctx, env)
	if err != nil {
		return Container{}, err
	}
	return Container{
		GPU: gpus, GPURun: run, GPUMemory: memoryLimits(env.GPUs),
		ID: env.ID, Image: spec.Image, Entrypoint: spec.Entrypoint, Command: spec.Command,
		Env: append(variables, userVariables(spec)...), Workdir: spec.Workdir, User: spec.User, Hostname: spec.Hostname,
		Resources: resources, Disk: disk, Mounts: mounts, NetNS: m.cfg.Networks.NetNS(env.ID), LogPath: m.logPath(env.ID),
		Labels:             containerLabels(env),
		AllowNewPrivileges: spec.AllowNewPrivileges,
	}, nil
}

// failCreate gives back what the store holds for an environment whose create
// failed, and keeps why. While something could not be removed it stays held:
// the reconciler tries again.
func (m *Manager) failCreate(ctx context.Context, env *Environment, opID string, cause error) error {
	cause = asCancelled(ctx, cause)
	ctx, cancel := cleanup.Context(ctx)
	defer cancel()
	reason := operation.ProblemOf(cause)
	if err := m.teardown(ctx, env); err != nil {
		m.leave(ctx, slog.LevelError, "a failed create could not be undone", "environment", env.ID, "error", err)
		if _, updateErr := m.update(ctx, env.ID, func(env *Environment) error {
			env.State, env.Problem = Failed, reason
			leave(env, opID)
			return nil
		}); updateErr != nil {
			return errors.Join(cause, err, updateErr)
		}
		return operation.Permanent(cause)
	}
	if err := m.release(ctx, env.ID, func(env *Environment) {
		env.State, env.Problem = Failed, reason
		leave(env, opID)
	}); err != nil {
		return errors.Join(cause, err)
	}
	return operation.Permanent(cause)
}

// teardown removes everything an environment has on the host. Each step is
// idempotent, so it undoes a create that failed or was interrupted anywhere.
// Its ports are withdrawn while the container goes; what the container uses
// goes after it. What was made for its GPU leases goes with these (release).
func (m *Manager) teardown(ctx context.Context, env *Environment) error {
	var withdraw error
	var publishing sync.WaitGroup
	publishing.Go(func() { withdraw = m.cfg.Networks.Publish(ctx, env.ID, env.Address, nil) })
	err := m.cfg.Engine.Delete(ctx, env.ID)
	publishing.Wait()
	if err != nil {
		return errors.Join(fmt.Errorf("delete container of environment %s: %w", env.ID, err), withdraw)
	}
	return errors.Join(withdraw,
		m.cfg.Networks.Detach(ctx, env.ID),
		m.cfg.Volumes.Unstage(ctx, env.ID),
		m.cfg.Desktops.Remove(ctx, env.ID),
		m.files.remove(env.ID),
		fault.Point(ctx, "torn down"))
}

// release gives back an environment's ports, GPUs and slot in the store, tells the
// pool and the watchers. What was made for its leases is removed then.
func (m *Manager) release(ctx context.Context, id string, change func(*Environment)) error {
	var had []gpu.Lease
	env, released, err := m.cfg.Store.ReleaseEnvironment(ctx, id, recorded(func(env *Environment) error {
		had = env.GPUs
		env.Held, env.Ready, env.Health, env.RestartAt = false, false, HealthUnknown, time.Time{}
		change(env)
		return nil
	}))
	if err != nil {
		return fmt.Errorf("release environment %s: %w", id, err)
	}
	m.cfg.Ports.Released(released)
	m.leaveSharing(ctx, id, had)
	m.follow(env)
	m.changes.publish(env)
	m.leaveInstances(ctx, id, had)
	return nil
}
