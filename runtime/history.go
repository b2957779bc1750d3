package runtime

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// History is something that happened to an environment. ("Event" is what the
// engine tells.)
type History struct {
	Time    time.Time
	Kind    string // one of those below
	Message string // for people
	Exit    *Exit  // how its process ended, for exited and stopped
}

// HistoryStore keeps histories; what a change adds is written with the change.
type HistoryStore interface {
	// History returns what happened to an environment, deleted ones included,
	// newest first, and the cursor of the next page.
	History(ctx context.Context, id string, limit int, after string) ([]History, string, error)
}

// Kinds of history.
const (
	HappenedCreated    = "created"
	HappenedStarted    = "started"
	HappenedExited     = "exited"
	HappenedOOM        = "oom"
	HappenedStopped    = "stopped"
	HappenedPaused     = "paused"
	HappenedResumed    = "resumed"
	HappenedUpdated    = "updated"
	HappenedRenamed    = "renamed"
	HappenedRestarting = "restarting"
	HappenedHealthy    = "healthy"
	HappenedUnhealthy  = "unhealthy"
	HappenedError      = "error"
	HappenedDeleted    = "deleted"
	HappenedSnapshot   = "snapshot"
	HappenedRolledBack = "rolled-back"

	HappenedPortAdded   = "port_added"
	HappenedPortRemoved = "port_removed"
	HappenedPortChanged = "port_changed"

	HappenedGPUs    = "gpus"     // it has others, or none any more
	HappenedGPUFail = "gpu_fail" // one of its GPUs failed, or is gone
)

// recorded adds to a change what it means for the environment's history, so
// that both are written in one transaction.
func recorded(change func(*Environment) error) func(*Environment) error {
	return func(env *Environment) error {
		before := *env
		if err := change(env); err != nil {
			return err
		}
		env.News = append(env.News, news(&before, env, time.Now())...)
		return nil
	}
}

// news is what happened between two forms of one environment.
func news(before, after *Environment, now time.Time) []History {
	var found []History
	if kills := after.OOMKills - before.OOMKills; kills == 1 {
		found = append(found, History{Kind: HappenedOOM, Message: "memory ran out and the kernel killed a process"})
	} else if kills > 1 {
		found = append(found, History{Kind: HappenedOOM, Message: fmt.Sprintf("memory ran out and the kernel killed %d processes", kills)})
	}
	if entry := newsOfPause(before, after); entry.Kind != "" {
		found = append(found, entry)
	} else if entry := newsOfLife(before, after); entry.Kind != "" {
		found = append(found, entry)
	}
	if after.Health != before.Health {
		switch after.Health {
		case Healthy:
			found = append(found, History{Kind: HappenedHealthy, Message: "its health check succeeds"})
		case Unhealthy:
			found = append(found, History{Kind: HappenedUnhealthy, Message: after.HealthDetail})
		case HealthUnknown, HealthStarting:
		}
	}
	if !after.RestartAt.IsZero() && !after.RestartAt.Equal(before.RestartAt) {
		found = append(found, History{Kind: HappenedRestarting, Message: fmt.Sprintf("it is started again in %s, restart %d",
			after.RestartAt.Sub(now).Round(time.Millisecond), after.RestartCount+1)})
	}
	for i := range found {
		found[i].Time = now
	}
	return found
}

// newsOfLife is what a change of state means, if anything.
func newsOfLife(before, after *Environment) History {
	why := "the process ended by itself"
	if after.Problem != nil {
		why = after.Problem.Message
	}
	switch {
	case after.State == Deleted && before.State != Deleted:
		return History{Kind: HappenedDeleted, Message: "it was deleted"}
	case after.State == Running && (before.State != Running || !after.StartedAt.Equal(before.StartedAt)):
		return History{Kind: HappenedStarted, Message: "its process was started"}
	case before.Alive() && !after.Alive() && before.Operation == "":
		return History{Kind: HappenedExited, Exit: after.Exit, Message: why}
	case after.State == Stopped && !after.Paused && (before.State != Stopped || before.Paused):
		return History{Kind: HappenedStopped, Exit: after.Exit, Message: "it was stopped"}
	case after.State == Failed && after.Problem != nil && after.Problem != before.Problem:
		return History{Kind: HappenedError, Message: why}
	}
	return History{}
}

// newsOfPause is what a change means that leaves the process the same one.
func newsOfPause(before, after *Environment) History {
	switch {
	case before.Paused == after.Paused || !before.Alive() || !after.Alive() || !after.StartedAt.Equal(before.StartedAt):
		return History{}
	case after.Paused:
		return History{Kind: HappenedPaused, Message: "its process was paused"}
	}
	return History{Kind: HappenedResumed, Message: "its process goes on"}
}

// History returns what happened to an environment, newest first, and the
// cursor of the next page. A deleted one is found by its id until it is
// forgotten.
func (m *Manager) History(ctx context.Context, project, idOrName string, limit int, after string) ([]History, string, error) {
	env, err := m.Get(ctx, project, idOrName)
	id, _ := parseID(idOrName) // a name that is no id finds nothing
	if err == nil {
		id = env.ID
	} else if !errdefs.IsNotFound(err) {
		return nil, "", err
	}
	entries, next, historyErr := m.cfg.Store.History(ctx, id, limit, after)
	if historyErr != nil {
		return nil, "", historyErr
	}
	if err != nil && len(entries) == 0 {
		return nil, "", err
	}
	return entries, next, nil
}

// hostRebooted is why an environment does not run after the host began anew.
func hostRebooted() error {
	return problem.New(problem.HostRebooted, "the host was rebooted while it ran").
		WithHint("start it again; its files are kept. A restart policy does so by itself")
}
