package gateway

import "context"

// Condition is what keeps people from a desktop, if anything does.
type Condition int

// The conditions.
const (
	Present Condition = iota // its environment runs, or is on its way there
	Stopped
	Paused
	Failed
	Gone // the environment was deleted, or has no desktop any more
)

// Conditions tells what becomes of the environments of desktops.
type Conditions interface {
	// Condition is that of an environment now. One that nobody knows is Gone.
	Condition(ctx context.Context, envID string) (Condition, error)
}

// Tell says that the condition of an environment may have changed. A desktop
// that stands still, or has gone, ends its sessions: they would show its last
// picture for ever.
func (g *Gateway) Tell(envID string, is Condition) {
	end, ends := endingIn(is)
	if !ends {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for s := range g.sessions[envID] {
		s.end(end)
	}
}

// endingIn is what browsers are told in a condition; false: nothing.
func endingIn(is Condition) (ending, bool) {
	switch is {
	case Stopped:
		return ending{code: closeStopped, reason: "the environment is stopped"}, true
	case Paused:
		return ending{code: closePaused, reason: "the environment is paused"}, true
	case Failed:
		return ending{code: closeFailed, reason: "the environment has failed"}, true
	case Gone:
		return ending{code: closeGone, reason: "there is no such desktop"}, true
	case Present:
	}
	return ending{}, false
}

// entered is one of the sessions of a desktop.
type entered struct {
	told chan ending // holds one
}

// end ends the session; the first reason counts.
func (s *entered) end(end ending) {
	select {
	case s.told <- end:
	default:
	}
}

// absent is what the browser is told when nobody can see the desktop now.
func (g *Gateway) absent(ctx context.Context, envID string) (ending, bool) {
	if g.conditions == nil {
		return ending{}, false
	}
	is, err := g.conditions.Condition(ctx, envID)
	if err != nil { // its desktop may answer all the same
		g.log.WarnContext(ctx, "the condition of an environment cannot be told", "environment", envID, "error", err)
		return ending{}, false
	}
	end, ends := endingIn(is)
	return end, ends
}
