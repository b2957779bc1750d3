package runtime

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

const (
	idA = "01ARZ3NDEKTSV4RRFFQ69G5FAA"
	idB = "01ARZ3NDEKTSV4RRFFQ69G5FAB"
)

// state is what a row of the table observes of environment A and around it.
type state struct {
	name string
	env  *Environment // nil: the store has none
	op   *operation.Operation
	// container is "": none, "running", "paused", "ended", "created", or
	// "renamed": it runs and was labelled with the name before.
	container string
	parts     []Part
	fates     map[string]Fate
	drift     []port.Drift
	cutOff    bool
	want      []string
}

func (s *state) observed() *observed {
	o := &observed{containers: map[string]ContainerStatus{}, operations: map[string]*operation.Operation{}, parts: s.parts, fates: s.fates, drift: s.drift, cutOff: map[string]bool{idA: s.cutOff}}
	if s.env != nil {
		s.env.ID, s.env.Name = idA, "a"
		o.environments = []*Environment{s.env}
		if s.env.Operation == "gone" || s.op != nil {
			o.operations[s.env.Operation] = s.op
		}
	}
	labels := map[string]string{labelName: "a"}
	switch s.container {
	case "running":
		o.containers[idA] = ContainerStatus{ID: idA, Labels: labels, Running: true}
	case "paused":
		o.containers[idA] = ContainerStatus{ID: idA, Labels: labels, Running: true, Paused: true}
	case "ended":
		o.containers[idA] = ContainerStatus{ID: idA, Labels: labels, Exit: &Exit{Code: 1}}
	case "created":
		o.containers[idA] = ContainerStatus{ID: idA, Labels: labels}
	case "renamed":
		o.containers[idA] = ContainerStatus{ID: idA, Labels: map[string]string{labelName: "b"}, Running: true}
	}
	return o
}

// line is a finding in one line.
func (f *Finding) line() string {
	owner := "ours"
	if !f.Ours {
		owner = "not ours"
	}
	return strings.TrimSpace(fmt.Sprintf("%s %s %s, %s: %s", f.Kind, f.Name, f.Action, owner, f.Message))
}

// TestPlan is the table of what there can be and what is done about it.
func TestPlan(t *testing.T) {
	started := time.Now()
	held := func(state State, op string) *Environment {
		return &Environment{State: state, Held: true, Operation: op, StartedAt: started}
	}
	paused := func() *Environment {
		return &Environment{State: Stopped, Paused: true, Held: true, StartedAt: started}
	}
	missing := func() *Environment {
		return &Environment{State: Failed, Problem: operation.ProblemOf(ContainerGone(GoneContainer, nil)), Held: true, StartedAt: started}
	}
	never := func(state State, held bool) *Environment { return &Environment{State: state, Held: held} }
	whole := []Part{{Kind: FoundNetwork, Name: idA, EnvID: idA}, {Kind: FoundLog, Name: "/l/" + idA + ".log", EnvID: idA}}
	gone, unknown, made := map[string]Fate{idA: FateGone}, map[string]Fate{idA: FateUnknown}, map[string]Fate{idA: FateHeld}
	for _, s := range []state{
		{name: "nothing at all"},
		{name: "running and it runs", env: held(Running, ""), container: "running", parts: whole},
		{name: "running and renamed", env: held(Running, ""), container: "renamed", want: []string{
			"container " + idA + " mend, ours: its label says another name",
		}},
		{name: "running without a network", env: held(Running, ""), container: "running", cutOff: true, want: []string{
			"network " + idA + " none, ours: it runs and somebody has removed its network; restart it",
		}},
		{name: "running and it has ended", env: held(Running, ""), container: "ended", want: []string{
			"environment " + idA + " record, ours: it is recorded as running and its process has ended",
		}},
		{name: "running without a task", env: held(Running, ""), container: "created", want: []string{
			"environment " + idA + " record, ours: it is recorded as running and its process has ended",
		}},
		{name: "running without a container", env: held(Running, ""), want: []string{
			"environment " + idA + " record, ours: it is recorded as running and has no container",
		}},
		{name: "stopped and it does not run", env: held(Stopped, ""), container: "created"},
		{name: "stopped and it runs", env: held(Stopped, ""), container: "running", want: []string{
			"environment " + idA + " record, ours: it is recorded as stopped and its process runs",
		}},
		{name: "failed and it runs", env: held(Failed, ""), container: "running", want: []string{
			"environment " + idA + " record, ours: it is recorded as failed and its process runs",
		}},
		{name: "failed and it has ended", env: held(Failed, ""), container: "ended"},
		{name: "paused and it is", env: paused(), container: "paused"},
		{name: "paused and it runs", env: paused(), container: "running", want: []string{
			"environment " + idA + " record, ours: it is recorded as paused and its process runs",
		}},
		{name: "paused and it has ended", env: paused(), container: "ended", want: []string{
			"environment " + idA + " record, ours: it is recorded as paused and its process has ended",
		}},
		{name: "running and it is paused", env: held(Running, ""), container: "paused", want: []string{
			"environment " + idA + " record, ours: it is recorded as running and is paused",
		}},
		{name: "stopped and it is paused", env: held(Stopped, ""), container: "paused", want: []string{
			"environment " + idA + " record, ours: it is recorded as stopped and its process runs",
		}},
		{name: "stopped without a container", env: held(Stopped, ""), want: []string{
			"container " + idA + " record, ours: its container is missing, so it cannot be started; delete it",
		}},
		{name: "without a container, as is recorded", env: missing(), want: []string{
			"container " + idA + " none, ours: its container is missing, so it cannot be started; delete it",
		}},
		{name: "creating with its operation at work", env: held(Creating, "op"), op: &operation.Operation{State: operation.Running}, container: "running"},
		{name: "an operation that waits", env: held(Running, "op"), op: &operation.Operation{State: operation.Queued}},
		{name: "an operation that could not be read", env: held(Running, "unread")},
		{name: "an operation that failed", env: held(Running, "op"), op: &operation.Operation{State: operation.Failed}, want: []string{
			"operation op release, ours: it has failed and still holds the environment",
		}},
		{name: "an operation that succeeded", env: held(Running, "op"), op: &operation.Operation{State: operation.Succeeded}, want: []string{
			"operation op release, ours: it has succeeded and still holds the environment",
		}},
		{name: "an operation that was cancelled", env: held(Stopped, "op"), op: &operation.Operation{State: operation.Cancelled}, want: []string{
			"operation op release, ours: it has been cancelled and still holds the environment",
		}},
		{name: "an operation that is gone", env: held(Stopped, "gone"), want: []string{
			"operation gone release, ours: it is gone and still holds the environment",
		}},
		{name: "a failed create that gave all back", env: never(Failed, false), fates: gone},
		{name: "a failed create that holds something", env: never(Failed, true), container: "created", parts: whole, want: []string{
			"environment " + idA + " remove, ours: its create failed and could not give back everything",
		}},
		{name: "a failed create that left something after it gave all back", env: never(Failed, false), container: "created", parts: whole, fates: gone, want: []string{
			"container " + idA + " remove, ours: its environment is gone",
			"log /l/" + idA + ".log remove, ours: its environment is gone",
			"network " + idA + " remove, ours: its environment is gone",
		}},
		{name: "parts of a deleted one", parts: whole, fates: gone, want: []string{
			"log /l/" + idA + ".log remove, ours: its environment is gone",
			"network " + idA + " remove, ours: its environment is gone",
		}},
		{name: "parts of nobody", parts: whole, fates: unknown, want: []string{
			"log /l/" + idA + ".log remove, ours: its environment is unknown and it has no container",
			"network " + idA + " remove, ours: its environment is unknown and it has no container",
		}},
		{name: "what may be another node's", parts: []Part{
			{Kind: FoundCgroup, Name: "/c/" + idA, EnvID: idA, Common: true}, {Kind: FoundNetwork, Name: idA, EnvID: idA, Common: true},
		}, fates: unknown, want: []string{
			"cgroup /c/" + idA + " none, not ours: its environment is unknown, and other nodes of this host may have theirs here",
			"network " + idA + " none, not ours: its environment is unknown, and other nodes of this host may have theirs here",
		}},
		{name: "what may be another node's, of a deleted one", parts: []Part{{Kind: FoundCgroup, Name: "/c/" + idA, EnvID: idA, Common: true}}, fates: gone, want: []string{
			"cgroup /c/" + idA + " remove, ours: its environment is gone",
		}},
		{name: "what may be another node's, beside what cannot be", parts: append([]Part{{Kind: FoundCgroup, Name: "/c/" + idA, EnvID: idA, Common: true}}, whole...), fates: unknown, want: []string{
			"cgroup /c/" + idA + " remove, ours: its environment is unknown and it has no container",
			"log /l/" + idA + ".log remove, ours: its environment is unknown and it has no container",
			"network " + idA + " remove, ours: its environment is unknown and it has no container",
		}},
		{name: "a container that nobody knows", container: "running", parts: whole, fates: unknown, want: []string{
			"container " + idA + " none, not ours: no environment of this node's database has it",
			"log /l/" + idA + ".log none, not ours: it belongs to a container that no environment of this node's database has",
			"network " + idA + " none, not ours: it belongs to a container that no environment of this node's database has",
		}},
		{name: "made since the list was read", container: "running", parts: whole, fates: made},
		{name: "whose fate could not be read", container: "running", parts: whole},
		{name: "a container of somebody else", parts: append([]Part{{Kind: FoundContainer, Name: idA, EnvID: idA, Foreign: "another's"}}, whole...), fates: unknown, want: []string{
			"container " + idA + " none, not ours: another's",
			"log /l/" + idA + ".log none, not ours: it belongs to a container that no environment of this node's database has",
			"network " + idA + " none, not ours: it belongs to a container that no environment of this node's database has",
		}},
		{name: "a container of somebody else with the id of a deleted one", parts: []Part{
			{Kind: FoundContainer, Name: idA, EnvID: idA, Foreign: "another's"}, {Kind: FoundSnapshot, Name: idA, EnvID: idA},
		}, fates: gone, want: []string{
			"container " + idA + " none, not ours: another's",
			"snapshot " + idA + " none, not ours: it belongs to a container that no environment of this node's database has",
		}},
		{name: "names that are no ids", parts: []Part{
			{Kind: FoundFiles, Name: "..data", EnvID: "..data"},
			{Kind: FoundMounts, Name: "backup", EnvID: "backup"},
			{Kind: FoundSnapshot, Name: strings.ToLower(idA), EnvID: strings.ToLower(idA)},
			{Kind: FoundSnapshot, Name: "z6kwfsy1qq", EnvID: "z6kwfsy1qq"},
		}, want: []string{
			"files ..data none, not ours: its name is not an environment's id",
			"mounts backup none, not ours: its name is not an environment's id",
			"snapshot 2 of them none, not ours: its name is not an environment's id",
		}},
		{name: "what belongs to no environment", parts: []Part{
			{Kind: FoundLease, Name: "l1"},
			{Kind: FoundPipes, Name: "/f/77"},
			{Kind: FoundInterface, Name: "rgpu-aaaaaaaa"},
			{Kind: FoundLease, Name: "l2", Foreign: "another's"},
		}, want: []string{
			"interface rgpu-aaaaaaaa remove, ours: it belongs to nobody",
			"lease 1 of them none, not ours: another's",
			"lease l1 remove, ours: it belongs to nobody",
			"pipes /f/77 remove, ours: it belongs to nobody",
		}},
		{name: "rules", env: held(Running, ""), container: "running", drift: []port.Drift{
			{EnvID: idA, Name: "tcp 80 to 10.0.0.2:80", Message: "missing"}, {Name: "RGPU-FWD", Message: "differs"},
		}, want: []string{
			"rule RGPU-FWD mend, ours: differs",
			"rule tcp 80 to 10.0.0.2:80 mend, ours: missing",
		}},
		{
			name: "one that is held beside one that is gone", env: held(Running, ""), container: "running",
			parts: append([]Part{{Kind: FoundDesktop, Name: idB, EnvID: idB}}, whole...), fates: map[string]Fate{idB: FateGone}, want: []string{
				"desktop " + idB + " remove, ours: its environment is gone",
			},
		},
	} {
		t.Run(s.name, func(t *testing.T) {
			o := s.observed()
			findings := plan(o)
			var got []string
			for i := range findings {
				f := &findings[i]
				got = append(got, f.line())
				if (f.Action == ActionNone) != (f.step == stepNone) {
					t.Errorf("action %s goes with step %d", f.Action, f.step)
				}
				if f.EnvID == idA && s.env != nil && f.EnvName != "a" {
					t.Errorf("the name is missing: %+v", f)
				}
			}
			if diff := cmp.Diff(s.want, got); diff != "" {
				t.Error(diff)
			}
			slices.Reverse(o.parts)
			again := plan(o)
			for i := range again {
				if again[i].line() != got[i] {
					t.Errorf("the order of what was read changes the plan: %s, %s", again[i].line(), got[i])
				}
			}
		})
	}
}
