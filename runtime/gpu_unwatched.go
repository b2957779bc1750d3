package runtime

import (
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
)

const (
	// watchProven is how long a watch lasts that is taken to work, unless it tells
	// of something before.
	watchProven = 5 * time.Second
	// watchFailures is how many watches in turn break before people are told: the
	// helper may have been ended once.
	watchFailures = 2
)

// unwatched is which errors of GPUs nobody is told of, and why. That one more watch
// is tried clears nothing of it.
type unwatched struct {
	mu       sync.Mutex
	gpus     map[string]string // by UUID, of the last watch that worked and of the present one
	present  map[string]string // of the present one
	failures int               // watches in turn
	broken   string            // why no GPU is watched; "": some are, or may be
}

// begin says that a watch begins.
func (u *unwatched) begin() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.present = make(map[string]string)
}

// of says that a GPU's errors are not told by the present watch.
func (u *unwatched) of(event *gpu.Event) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.gpus == nil {
		u.gpus = make(map[string]string)
	}
	if u.present == nil {
		u.present = make(map[string]string)
	}
	u.gpus[event.UUID], u.present[event.UUID] = event.Detail, event.Detail
}

// works says that the present watch does, and whether none did.
func (u *unwatched) works() (news bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	news = u.broken != ""
	u.gpus, u.failures, u.broken = u.present, 0, ""
	return news
}

// broke says that a watch broke, and whether that is to be told.
func (u *unwatched) broke(err error) (news bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.failures++
	if u.failures < watchFailures {
		return false
	}
	news = u.broken != err.Error()
	u.broken = err.Error()
	return news
}

// why is why the errors of a GPU are not told; "": they are.
func (u *unwatched) why(uuid string) string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.gpus[uuid]
}

// all is why those of none are; "": some are.
func (u *unwatched) all() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.broken
}
