package helper

import (
	"encoding/json"
	"errors"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// The methods, as gpu.Driver has them.
const (
	methodProbe      = "probe"
	methodEdits      = "edits"
	methodUsage      = "usage"
	methodWatch      = "watch"
	methodCreateMIG  = "create_mig"
	methodDestroyMIG = "destroy_mig"
	methodMIGMode    = "mig_mode"
	methodExclusive  = "exclusive_process"
	methodLimit      = "memory_limit"
	methodMemory     = "memory_used"
)

// question is what the helper is asked.
type question struct {
	ID        int64             `json:"id"`
	Method    string            `json:"method"`
	Edits     *gpu.EditsRequest `json:"edits,omitempty"`
	GPU       string            `json:"gpu,omitempty"`
	MIG       string            `json:"mig,omitempty"`
	Profile   string            `json:"profile,omitempty"`
	Placement gpu.Span          `json:"placement"`
	On        bool              `json:"on,omitempty"`
	Cgroup    string            `json:"cgroup,omitempty"`
	Cgroups   []string          `json:"cgroups,omitempty"`
	Bytes     uint64            `json:"bytes,omitempty"`
	Only      []string          `json:"only"` // nil is not empty
}

// answer is what it says. A watch has one with an event for each, and an
// answer with a failure when it ends.
type answer struct {
	ID       int64           `json:"id"`
	Event    *gpu.Event      `json:"event,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Failures []failure       `json:"failures,omitempty"`
	// Stale says that another process might do better: this one has loaded
	// what has changed since.
	Stale bool `json:"stale,omitempty"`
}

// failure is a problem.Problem on its way.
type failure struct {
	Reason  problem.Reason `json:"reason"`
	Message string         `json:"message"`
	Field   string         `json:"field,omitempty"`
	Hint    string         `json:"hint,omitempty"`
}

func failures(err error) []failure {
	problems := problem.All(err)
	if len(problems) == 0 {
		problems = []*problem.Problem{problem.Of(err)}
	}
	found := make([]failure, len(problems))
	for i, p := range problems {
		found[i] = failure{Reason: p.Reason, Message: p.Error(), Field: p.Field, Hint: p.Hint}
	}
	return found
}

// err is the failures as an error; nil for none.
func (a *answer) err() error {
	var errs []error
	for _, f := range a.Failures {
		errs = append(errs, &problem.Problem{Reason: f.Reason, Message: f.Message, Field: f.Field, Hint: f.Hint})
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}
