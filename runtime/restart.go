package runtime

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// RestartMode is when an environment is started again by itself.
type RestartMode string

// The modes. Always and unless-stopped are the same: what somebody stopped
// stays stopped.
const (
	RestartNo            RestartMode = "no"
	RestartOnFailure     RestartMode = "on-failure"
	RestartAlways        RestartMode = "always"
	RestartUnlessStopped RestartMode = "unless-stopped"
)

// RestartPolicy is what happens when a process ends unasked.
type RestartPolicy struct {
	Mode        RestartMode `json:"mode"`
	MaxRetries  int         `json:"max_retries,omitempty"` // of on-failure; 0: no limit
	OnUnhealthy bool        `json:"on_unhealthy,omitempty"`
}

// Between two restarts the node waits restartBase, doubled each time up to
// restartMax; a run of restartReset forgets the count.
const (
	restartBase  = 100 * time.Millisecond
	restartMax   = time.Minute
	restartReset = 10 * time.Minute
)

func checkRestart(spec *Spec) error {
	p := spec.Restart
	if p == nil {
		return nil
	}
	if p.Mode == "" {
		p.Mode = RestartNo
	}
	var errs []error
	if p.MaxRetries != 0 && p.Mode != RestartOnFailure {
		errs = append(errs, invalid("spec.restart.max_retries", "leave it out, or use on-failure", "mode %s counts no retries", p.Mode))
	}
	if p.OnUnhealthy && p.Mode == RestartNo {
		errs = append(errs, invalid("spec.restart.on_unhealthy", "set spec.restart.mode too, for example on-failure", "mode no never restarts"))
	}
	if p.OnUnhealthy && spec.HealthCheck == nil {
		errs = append(errs, invalid("spec.restart.on_unhealthy", "set spec.health_check", "without a health check nothing is found unhealthy"))
	}
	return errors.Join(errs...)
}

// planRestart decides, within the change that ends a run, whether and when the
// environment is started again. failed says that the run failed; ran is how
// long it lasted.
func planRestart(env *Environment, failed bool, ran time.Duration, now time.Time) {
	env.RestartAt = time.Time{}
	p := env.Spec.Restart
	if p == nil || p.Mode == RestartNo || p.Mode == "" || p.Mode == RestartOnFailure && !failed {
		return
	}
	if ran >= restartReset {
		env.RestartCount = 0
	}
	if p.Mode == RestartOnFailure && p.MaxRetries > 0 && env.RestartCount >= p.MaxRetries {
		if env.Problem != nil {
			env.Problem.Hint = fmt.Sprintf("it was restarted %d times; find out why it ends, then start it again: its files are kept", env.RestartCount)
		}
		return
	}
	env.RestartAt = now.Add(restartWait(env.RestartCount))
}

// planAfterExit is planRestart for a process that has ended unasked.
func planAfterExit(env *Environment, exit *Exit, now time.Time) {
	end := now
	if exit != nil && !exit.At.IsZero() {
		end = exit.At
	}
	planRestart(env, env.State == Failed, end.Sub(env.StartedAt), now)
}

// planAgain keeps a restart alive whose operation ended without success. One
// that somebody cancelled ends there.
func planAgain(env *Environment, cancelled bool) {
	if !env.ByPolicy {
		return
	}
	env.ByPolicy = false
	if !cancelled {
		planRestart(env, true, 0, time.Now())
	}
}

// planAnew plans by a policy or a health check that was changed. A restart that
// is pending keeps its time, if it still is to be; one that max_retries had ended
// comes after all, if they are more now. What ended under a policy that does not
// restart it waits for somebody to start it.
func planAnew(env *Environment, before *RestartPolicy, now time.Time) {
	pending := env.RestartAt
	env.RestartAt = time.Time{}
	p := env.Spec.Restart
	switch {
	case p == nil:
	case env.State == Running:
		if env.Health == Unhealthy && p.OnUnhealthy {
			planRestart(env, true, now.Sub(env.StartedAt), now)
		}
	case !pending.IsZero() || gaveUp(env, before):
		planRestart(env, env.State == Failed, 0, now) // how long it ran has been counted
	}
	if !pending.IsZero() && !env.RestartAt.IsZero() {
		env.RestartAt = pending
	}
}

// gaveUp says that an environment is in error because its process ended once
// more often than its policy restarts it.
func gaveUp(env *Environment, p *RestartPolicy) bool {
	return env.State == Failed && env.Problem != nil && env.Problem.Reason == string(problem.ProcessExited) &&
		p != nil && p.Mode == RestartOnFailure && p.MaxRetries > 0 && env.RestartCount >= p.MaxRetries
}

// restartWait is the pause before the next restart after so many.
func restartWait(count int) time.Duration {
	wait := restartBase
	for range min(count, 16) {
		wait = min(2*wait, restartMax)
	}
	return wait
}

// restartIsDue tells whether the time of a planned restart has come, or lies
// further ahead than any is planned: the clock was set back since.
func restartIsDue(env *Environment, now time.Time) bool {
	left := env.RestartAt.Sub(now)
	return left <= 0 || left > restartMax
}

// userActs is what an operation of somebody means for the restart policy.
func userActs(env *Environment, kind string) {
	switch kind {
	case KindStart, KindRestart:
		env.RestartCount = 0
	case KindStop, KindDelete, KindPause:
	default:
		return
	}
	env.RestartAt, env.ByPolicy = time.Time{}, false
}

// followRestart takes over what the store now says of an environment.
func (m *Manager) followRestart(env *Environment) {
	at := env.RestartAt
	if env.State == Deleted {
		at = time.Time{}
	}
	m.restart.set(env.ID, at)
}

// runRestarts starts what is due until ctx ends, again after a moment when a
// restart could not even be written down.
func (m *Manager) runRestarts(ctx context.Context) {
	m.restart.run(ctx, m.restartDue, func(id string, err error) {
		if errors.Is(err, errNotYet) {
			return
		}
		m.cfg.Log.ErrorContext(ctx, "a restart was not begun; it is tried again", "environment", id, "error", err)
	})
}

// What ends a transaction on an environment that is not to be restarted, or not
// before the operation that works on it is over.
var (
	errNotDue = errors.New("no restart is due")
	errNotYet = errors.New("the environment cannot be restarted yet")
)

// restartDue writes down the operation that starts an environment again, with
// what it means for the environment in the same transaction: from then on the
// queue carries it across a death of the daemon.
func (m *Manager) restartDue(ctx context.Context, id string) error {
	env, err := m.cfg.Store.Environment(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	kind := KindStart
	if env.State == Running { // found unhealthy
		kind = KindRestart
	}
	op := m.newOperation(kind, env.Project, env.ID, "", "", actionArgs{Timeout: DefaultStopTimeout})
	updated, _, err := m.cfg.Store.UpdateEnvironment(ctx, id, op, func(env *Environment) error {
		switch {
		case env.RestartAt.IsZero():
			return errNotDue
		case !restartIsDue(env, time.Now()), (env.State == Running) != (kind == KindRestart), env.Operation != "":
			return errNotYet // it has changed since it was read, or another operation holds it
		}
		env.Operation, env.RestartAt, env.ByPolicy = op.ID, time.Time{}, true
		env.RestartCount++
		return nil
	})
	if errors.Is(err, errNotDue) || errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	m.fill(updated)
	m.changes.publish(updated)
	m.cfg.Queue.Kick(op.ID)
	return nil
}

// cancelledByUser says that an operation ended because somebody cancelled it.
func cancelledByUser(ctx context.Context) bool {
	return errors.Is(context.Cause(ctx), operation.ErrCancelled)
}

// MetaStore keeps values about the node itself.
type MetaStore interface {
	// Meta returns a value, "" when it was never set.
	Meta(ctx context.Context, key string) (string, error)
	// SetMeta sets a value.
	SetMeta(ctx context.Context, key, value string) error
}

// metaBoot is the boot of the host that this node last looked at.
const metaBoot = "boot.id"

// noticeReboot finds out whether the host began anew since the last complete
// reconciliation.
func (m *Manager) noticeReboot(ctx context.Context) error {
	if m.cfg.BootID == "" {
		return nil
	}
	last, err := m.cfg.Store.Meta(ctx, metaBoot)
	if err != nil {
		return err
	}
	m.rebooted.Store(last != "" && last != m.cfg.BootID)
	return nil
}

// reconciled ends what a reboot means: all that it ended is recorded.
func (m *Manager) reconciled(ctx context.Context) error {
	if m.cfg.BootID == "" || m.bootKept.Load() {
		return nil
	}
	if err := m.cfg.Store.SetMeta(ctx, metaBoot, m.cfg.BootID); err != nil {
		return err
	}
	m.rebooted.Store(false)
	m.bootKept.Store(true)
	return nil
}
