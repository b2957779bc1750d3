package runtime

import "github.com/remotegpu/remotegpu/internal/problem"

// ContainerGone is why an environment can never be started again: what the engine
// had of it, its container or its writable layer, somebody has removed. The cause
// is the engine's.
func ContainerGone(what string, cause error) *problem.Problem {
	return problem.New(problem.EnvNotStartable, "its %s is missing, so it cannot be started", what).WithCause(cause).
		WithHint("delete it and create it anew; volumes are kept")
}

// The two things that may be missing.
const (
	GoneContainer = "container"
	GoneLayer     = "writable layer"
)

// isGone tells whether an error says so.
func isGone(err error) bool { return err != nil && problem.Of(err).Reason == problem.EnvNotStartable }

// hasGone tells whether an environment is in error for that reason. One whose
// create failed has another: it was never started.
func hasGone(env *Environment) bool {
	return env.State == Failed && env.Problem != nil && env.Problem.Reason == string(problem.EnvNotStartable)
}

// ErrSlowWatcher ends a watch whose receiver fell too far behind.
var ErrSlowWatcher = problem.New(problem.Unavailable, "the watcher fell behind").WithHint("watch again; the first messages bring you up to date")
