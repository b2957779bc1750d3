package runtime

import (
	"cmp"
	"slices"
	"strings"

	"github.com/oklog/ulid/v2"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// FindingKind is what a finding is about.
type FindingKind string

// The kinds. The first two are about what the store says, the others are
// things on the host.
const (
	FoundEnvironment FindingKind = "environment" // its state is not what its process says
	FoundOperation   FindingKind = "operation"   // it is over, and holds an environment
	FoundContainer   FindingKind = "container"
	FoundTask        FindingKind = "task"        // a process that containerd knows, of no container
	FoundProcess     FindingKind = "process"     // a shim or a log writer of no container
	FoundCgroup      FindingKind = "cgroup"      // of no container
	FoundSnapshot    FindingKind = "snapshot"    // a writable layer of no container, or one that somebody took
	FoundQuota       FindingKind = "quota"       // the limit of a writable layer that is gone
	FoundLease       FindingKind = "lease"       // in containerd, of an engine that died
	FoundLog         FindingKind = "log"         // a log file, rotated ones with it
	FoundPipes       FindingKind = "pipes"       // of the commands of a daemon that died
	FoundNetwork     FindingKind = "network"     // a network namespace, its bridge and pair
	FoundInterface   FindingKind = "interface"   // ours by its name, and of no environment
	FoundRule        FindingKind = "rule"        // of the host's packet filter
	FoundMounts      FindingKind = "mounts"      // staged mounts
	FoundDesktop     FindingKind = "desktop"     // the directory of an RFB socket and its password
	FoundFiles       FindingKind = "files"       // the directory of /etc/hosts and the like
	FoundVolume      FindingKind = "volume"      // the files of one that was deleted
	FoundCredentials FindingKind = "credentials" // what a registry asks for, of an operation that is over
)

// Action is what the reconciler does about a finding.
type Action string

// The actions.
const (
	ActionNone    Action = "none"    // it is reported
	ActionRecord  Action = "record"  // the store is made to say what is
	ActionRelease Action = "release" // the environment is freed from the operation
	ActionRemove  Action = "remove"  // it is removed, with whatever else its environment left
	ActionMend    Action = "mend"    // the rules are declared anew
)

// Part is something on the host that is found by its name.
type Part struct {
	Kind  FindingKind
	Name  string // path, key or name; "": the environment's id
	EnvID string // "": it belongs to no certain environment
	// Foreign says why it is none of ours though it is where ours are; "" when
	// it is ours.
	Foreign string
	// Common says that it is where other nodes of the host may have theirs, too:
	// it is ours when the store knows its environment, or when something else of
	// that is where only ours can be.
	Common bool
	// Pulling is the image that was pulled under a lease; "" for all else.
	Pulling string
}

// Finding is one difference between what should be and what is.
type Finding struct {
	Kind    FindingKind
	Name    string // path, key, name or id
	EnvID   string // "" when none is known
	EnvName string // "" unless the store has the environment
	Message string // what is wrong
	Action  Action
	// Ours says that this node answers for it. What is not ours is reported
	// and never touched.
	Ours bool
	// Done says that the action was taken, or turned out to be unnecessary
	// when the thing was looked at again.
	Done    bool
	Problem *operation.Problem // why the action failed

	step step
	err  error
}

// step is how a finding is brought in order.
type step int

const (
	stepNone     step = iota
	stepEnded         // record that the process has ended
	stepFree          // end the operation's hold
	stepUndo          // give back what a failed create could not
	stepFrozen        // record whether it is paused
	stepAdopt         // record that the process runs
	stepRelabel       // label the container anew
	stepGone          // record that it has no container any more
	stepPin           // hold the network namespace of the process again
	stepDeclare       // declare the rules
	stepTeardown      // remove everything of the id
	stepPart          // remove this part
	stepVolumes       // remove the files of deleted volumes
	stepSnapshot      // finish what was begun with a snapshot
)

// sortFindings orders by whose and what, so that two passes over one state say
// the same.
func sortFindings(findings []Finding) {
	slices.SortStableFunc(findings, func(a, b Finding) int {
		return cmp.Or(strings.Compare(a.EnvID, b.EnvID), strings.Compare(string(a.Kind), string(b.Kind)), strings.Compare(a.Name, b.Name))
	})
}

// isID says whether a name is an environment's id. Ids are written in capital
// letters, so that one id has one name.
func isID(name string) bool {
	id, ok := parseID(name)
	return ok && id == name
}

// parseID reads an id that somebody wrote, in capitals or not.
func parseID(text string) (id string, ok bool) {
	parsed, err := ulid.ParseStrict(text)
	if err != nil {
		return "", false
	}
	return parsed.String(), true
}

// likeAnID is the refusal of a name that would be taken for an id where both
// are accepted: ids are found in every project, so it could lead to what is
// somebody else's.
func likeAnID(reason problem.Reason, name, field string) error {
	if _, like := parseID(name); !like {
		return nil
	}
	return problem.New(reason, "the name %q reads like an id", name).WithField(field).
		WithHint("choose another name; ids are 26 letters and digits, so a shorter or longer one will do, or one with a - in it")
}
