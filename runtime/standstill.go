package runtime

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// ErrPaused says that a process cannot be started, or a root not be entered,
// because the container stands still: somebody has paused it, or its layer is
// being read. It may go on a moment later.
var ErrPaused = errors.New("it stands still")

const (
	// standstillWait is how long commands and copies wait for an environment that
	// stands still without being paused for its user: for a snapshot of it.
	standstillWait = 10 * time.Second
	standstillPoll = 100 * time.Millisecond
)

// moving calls do with env, and again with the environment as it is then while
// that is ErrPaused, for as long as patience. It must have done nothing in that
// case. ENV_BUSY when the environment stands still all the time; the errors of do, which
// says so where the environment is paused for its user.
func (m *Manager) moving(ctx context.Context, env *Environment, patience time.Duration, do func(*Environment) error) error {
	err := do(env)
	if !errors.Is(err, ErrPaused) {
		return err
	}
	over := time.NewTimer(patience)
	defer over.Stop()
	tick := time.NewTicker(standstillPoll)
	defer tick.Stop()
	for errors.Is(err, ErrPaused) {
		select {
		case <-tick.C:
		case <-over.C:
			return problem.New(problem.EnvBusy, "environment %q stands still: a snapshot of it is being taken, or its files are being changed", env.Name).
				WithField("environment").WithHint("try again when that is done: remotegpu env get %s", env.Name)
		case <-ctx.Done():
			return fmt.Errorf("wait for environment %s to go on: %w", env.ID, context.Cause(ctx))
		}
		current, lookErr := m.Get(ctx, env.Project, env.ID)
		if lookErr != nil {
			return lookErr
		}
		err = do(current)
	}
	return err
}
