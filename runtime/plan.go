package runtime

import (
	"fmt"

	"github.com/remotegpu/remotegpu/runtime/operation"
)

// plan tells the differences between what should be and what is, and what is to
// be done about each. It depends on nothing but what was observed, so that what
// a dry run shows is what a pass does.
func plan(o *observed) []Finding {
	var findings []Finding
	for _, env := range o.environments {
		if finding, differs := planEnvironment(o, env); differs {
			finding.EnvID, finding.EnvName, finding.Ours = env.ID, env.Name, true
			findings = append(findings, finding)
		}
	}
	findings = append(findings, planParts(o)...)
	findings = append(findings, foldForeign(o.snapshots)...)
	for _, drift := range o.drift {
		findings = append(findings, Finding{
			Kind: FoundRule, Name: drift.Name, EnvID: drift.EnvID, Message: drift.Message, Action: ActionMend, Ours: true, step: stepDeclare,
		})
	}
	names := make(map[string]string, len(o.environments))
	for _, env := range o.environments {
		names[env.ID] = env.Name
	}
	for i := range findings {
		findings[i].EnvName = names[findings[i].EnvID]
	}
	sortFindings(findings)
	return findings
}

// planEnvironment compares one environment with its container.
func planEnvironment(o *observed, env *Environment) (Finding, bool) {
	status, exists := o.containers[env.ID]
	finding := Finding{Kind: FoundEnvironment, Name: env.ID, Action: ActionRecord}
	switch {
	case env.Operation != "":
		return planOperation(o, env.Operation)
	case !env.Held, env.State == Creating, o.unknown[env.ID]:
		return Finding{}, false // it owns nothing, or nobody can tell what
	case env.State == Failed && env.StartedAt.IsZero():
		finding.Message, finding.Action, finding.step = "its create failed and could not give back everything", ActionRemove, stepUndo
	case env.Alive() && !exists:
		finding.Message, finding.step = fmt.Sprintf("it is recorded as %s and has no container", stateWord(env)), stepEnded
	case !exists:
		// Its writable layer is gone with it. To delete the rest is up to whom
		// it belongs.
		finding.Kind, finding.Message, finding.Action = FoundContainer, "its container is missing, so it cannot be started; delete it", ActionNone
		if !hasGone(env) {
			finding.Action, finding.step = ActionRecord, stepGone
		}
	default:
		finding.Message, finding.step = planProcess(env, status)
		if finding.step == stepNone && status.Labels[labelName] != env.Name { // renamed
			finding.Kind, finding.Message, finding.Action, finding.step = FoundContainer, "its label says another name", ActionMend, stepRelabel
		} else if finding.step == stepNone && o.living[env.ID] {
			finding.Kind, finding.Message, finding.Action, finding.step = FoundNetwork, "it runs and somebody has removed what holds its network", ActionMend, stepPin
		} else if finding.step == stepNone && o.cutOff[env.ID] {
			// Its namespace may be nobody's to enter any more: a start makes another.
			finding.Kind, finding.Message, finding.Action = FoundNetwork, "it runs and somebody has removed its network; restart it", ActionNone
		}
	}
	return finding, finding.Message != ""
}

// planProcess compares what an environment's process should do with what it
// does.
func planProcess(env *Environment, status ContainerStatus) (message string, step step) {
	switch {
	case env.Alive() && !status.Running:
		return fmt.Sprintf("it is recorded as %s and its process has ended", stateWord(env)), stepEnded
	case env.Paused && !status.Paused:
		return "it is recorded as paused and its process runs", stepFrozen
	case env.Alive() && !env.Paused && status.Paused:
		return "it is recorded as running and is paused", stepFrozen
	case !env.Alive() && status.Running:
		return fmt.Sprintf("it is recorded as %s and its process runs", stateWord(env)), stepAdopt
	}
	return "", stepNone
}

// planOperation frees an environment from an operation that is over.
func planOperation(o *observed, id string) (Finding, bool) {
	op, read := o.operations[id]
	if !read || op != nil && !op.State.Done() {
		return Finding{}, false // the environment is the operation's
	}
	finding := Finding{Kind: FoundOperation, Name: id, Action: ActionRelease, step: stepFree}
	finding.Message = "it is gone and still holds the environment"
	if op != nil {
		finding.Message = fmt.Sprintf("it has %s and still holds the environment", verbOf(op.State))
	}
	return finding, true
}

func verbOf(state operation.State) string {
	switch state {
	case operation.Succeeded:
		return "succeeded"
	case operation.Failed:
		return "failed"
	default:
		return "been cancelled"
	}
}

func stateWord(env *Environment) string {
	switch {
	case env.Paused:
		return "paused"
	case env.State == Failed:
		return "failed"
	default:
		return string(env.State)
	}
}

// planParts tells what on the host belongs to nobody, and what is not ours.
func planParts(o *observed) []Finding {
	held := make(map[string]bool, len(o.environments))
	for _, env := range o.environments {
		held[env.ID] = env.Held
	}
	parts := make([]Part, 0, len(o.parts)+len(o.containers))
	foreign := make(map[string]bool) // ids of containers that are not to be touched
	for id := range o.containers {
		if fate, asked := o.fates[id]; !isID(id) || asked && fate == FateUnknown {
			foreign[id] = true
		}
		parts = append(parts, Part{Kind: FoundContainer, Name: id, EnvID: id})
	}
	for _, part := range o.parts {
		if part.Kind == FoundContainer && part.Foreign != "" {
			foreign[part.Name] = true
		}
		parts = append(parts, part)
	}
	own := make(map[string]bool) // ids that have something where only ours can be
	for _, part := range parts {
		own[part.EnvID] = own[part.EnvID] || !part.Common && part.Foreign == ""
	}
	var findings []Finding
	for _, part := range parts {
		if held[part.EnvID] && part.Foreign == "" {
			continue
		}
		if finding, differs := planPart(o, part, foreign, own); differs {
			findings = append(findings, finding)
		}
	}
	return foldForeign(findings)
}

// foldForeign makes one finding of all snapshots, and of all leases, that are
// somebody else's for the same reason: BuildKit keeps hundreds of them in our
// namespace.
func foldForeign(findings []Finding) []Finding {
	type why struct {
		kind    FindingKind
		message string
	}
	counts := make(map[why]int)
	kept := findings[:0]
	for _, f := range findings {
		if f.Ours || f.EnvID != "" || f.Kind != FoundSnapshot && f.Kind != FoundLease {
			kept = append(kept, f)
			continue
		}
		counts[why{f.Kind, f.Message}]++
	}
	for why, count := range counts {
		kept = append(kept, Finding{Kind: why.kind, Name: fmt.Sprintf("%d of them", count), Message: why.message, Action: ActionNone})
	}
	return kept
}

// planPart decides about something that no environment holds. foreign and own are
// ids: of containers that are not to be touched, and of what has something where
// only this node's can be.
func planPart(o *observed, part Part, foreign, own map[string]bool) (Finding, bool) {
	finding := Finding{Kind: part.Kind, Name: part.Name, EnvID: part.EnvID, Action: ActionNone}
	if finding.Name == "" {
		finding.Name = part.EnvID
	}
	fate, asked := o.fates[part.EnvID]
	switch {
	case part.Foreign != "":
		finding.EnvID, finding.Message = "", part.Foreign
	case part.Kind == FoundVolume:
		finding.Message, finding.Action, finding.Ours, finding.step = "it was deleted, and not all of its files are removed", ActionRemove, true, stepVolumes
	case part.EnvID == "":
		finding.Message, finding.Action, finding.Ours, finding.step = "it belongs to nobody", ActionRemove, true, stepPart
	case !isID(part.EnvID):
		finding.EnvID, finding.Message = "", "its name is not an environment's id"
	case foreign[part.EnvID] && part.Kind == FoundContainer:
		finding.Message = "no environment of this node's database has it"
	case foreign[part.EnvID]:
		finding.Message = "it belongs to a container that no environment of this node's database has"
	case !asked || fate == FateHeld:
		return Finding{}, false // not known, or made since the list was read
	case fate == FateGone:
		finding.Message, finding.Action, finding.Ours, finding.step = "its environment is gone", ActionRemove, true, stepTeardown
	case !own[part.EnvID]:
		finding.Message = "its environment is unknown, and other nodes of this host may have theirs here"
	default:
		finding.Message, finding.Action, finding.Ours, finding.step = "its environment is unknown and it has no container", ActionRemove, true, stepTeardown
	}
	return finding, true
}
