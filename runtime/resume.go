package runtime

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"github.com/remotegpu/remotegpu/internal/problem"
)

const (
	// keepChanges and keepChangeBytes bound what a watch can be resumed over.
	keepChanges     = 2048
	keepChangeBytes = 16 << 20
)

// numbered is a change with its place in the order of all changes since the
// daemon started.
type numbered struct {
	seq  uint64
	size int
	env  *Environment
}

// recent are the last changes, oldest first.
type recent struct {
	life    string // names this life of the daemon
	seq     uint64 // of the newest
	changes []numbered
	bytes   int
}

// add numbers a change and forgets the oldest ones beyond the bounds.
func (r *recent) add(env *Environment) numbered {
	r.seq++
	change := numbered{seq: r.seq, size: weigh(env), env: env}
	r.changes = append(r.changes, change)
	r.bytes += change.size
	drop := 0
	for drop < len(r.changes) && (len(r.changes)-drop > keepChanges || r.bytes > keepChangeBytes) {
		r.bytes -= r.changes[drop].size
		r.changes[drop].env = nil // append may keep the array for a while
		drop++
	}
	r.changes = r.changes[drop:]
	return change
}

// weigh is about how much memory an environment takes, in bytes.
func weigh(env *Environment) int {
	size := 2048
	for key, value := range env.Labels {
		size += len(key) + len(value) + 64
	}
	for _, word := range env.Warnings {
		size += len(word) + 16
	}
	size += weighSpec(&env.Spec) + len(env.HealthDetail) + 256*(len(env.Ports)+2*len(env.GPUs))
	if env.Applied != nil {
		size += weighSpec(env.Applied)
	}
	return size
}

func weighSpec(spec *Spec) int {
	size := 256 * (len(spec.Mounts) + len(spec.Ports))
	for key, value := range spec.Env {
		size += len(key) + len(value) + 64
	}
	lists := [][]string{spec.Entrypoint, spec.Command}
	if spec.HealthCheck != nil {
		lists = append(lists, spec.HealthCheck.Command)
	}
	for _, list := range lists {
		for _, word := range list {
			size += len(word) + 16
		}
	}
	return size
}

// token names the place after a change.
func (r *recent) token(seq uint64) string {
	return base64.RawURLEncoding.EncodeToString([]byte(r.life + "." + strconv.FormatUint(seq, 10)))
}

// after returns the changes after a token, and the newest revision of each
// environment up to it, as far as known. FIELD_INVALID when it is no token,
// RESUME_TOKEN_TOO_OLD when what followed it is not known any more.
func (r *recent) after(token string) (missed []numbered, seen map[string]int64, err error) {
	text, err := base64.RawURLEncoding.DecodeString(token)
	life, number, found := strings.Cut(string(text), ".")
	seq, numberErr := strconv.ParseUint(number, 10, 64)
	if err != nil || !found || numberErr != nil {
		return nil, nil, problem.New(problem.FieldInvalid, "the resume token is not one").WithField("resume_after").
			WithHint("use the last resume_token of an earlier watch, or leave it empty")
	}
	oldest := r.seq + 1
	if len(r.changes) > 0 {
		oldest = r.changes[0].seq
	}
	if life != r.life || seq > r.seq || seq+1 < oldest {
		why := fmt.Sprintf("more than the last %d changes came after it", len(r.changes))
		if life != r.life || seq > r.seq {
			why = "the daemon has been started anew since"
		}
		return nil, nil, problem.New(problem.ResumeTokenTooOld, "the watch cannot be resumed: %s", why).WithField("resume_after").
			WithHint("watch anew without a resume token")
	}
	seen = make(map[string]int64)
	for i, change := range r.changes {
		if change.seq > seq {
			return append([]numbered(nil), r.changes[i:]...), seen, nil
		}
		seen[change.env.ID] = max(seen[change.env.ID], change.env.Revision)
	}
	return nil, seen, nil
}
