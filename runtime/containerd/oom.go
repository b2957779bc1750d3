package containerd

import (
	"time"

	"github.com/remotegpu/remotegpu/runtime"
)

const (
	// oomPoll is how often the counter of a cgroup is read that has not grown
	// yet, oomPatience how long.
	oomPoll     = 20 * time.Millisecond
	oomPatience = 5 * time.Second
)

// oomWatch makes the shims' words about memory true. With cgroup v1 a shim is
// told before the kernel kills, and once for several kills; one that starts to
// watch too late tells nothing of a first process that was killed at once. So
// the kernel's counter is what is told of: when a shim says something, and when
// a container ends.
type oomWatch struct {
	told map[string]int       // what was told last, of containers that run
	due  map[string]time.Time // whose counter has to grow yet, and until when
}

// struck takes note of a shim's word. known says that the counter could be
// read: of a container that has no cgroup any more the word alone is told.
func (w *oomWatch) struck(to []runtime.Event, id string, kills int, known bool) []runtime.Event {
	switch {
	case !known:
		return w.tell(to, id, w.told[id]+1)
	case kills > w.told[id]:
		return w.tell(to, id, kills)
	}
	w.due[id] = time.Now().Add(oomPatience)
	return to
}

// look reads the counters that have to grow yet.
func (w *oomWatch) look(to []runtime.Event, read func(id string) (int, bool)) []runtime.Event {
	for id, until := range w.due {
		switch kills, _ := read(id); {
		case kills > w.told[id]:
			to = w.tell(to, id, kills)
		case time.Now().After(until): // it was told with the one before
			delete(w.due, id)
		}
	}
	return to
}

// ended tells what was not told of a container that has ended, and forgets it.
func (w *oomWatch) ended(to []runtime.Event, id string, kills int) []runtime.Event {
	if kills > w.told[id] {
		to = w.tell(to, id, kills)
	}
	delete(w.told, id)
	delete(w.due, id)
	return to
}

func (w *oomWatch) tell(to []runtime.Event, id string, kills int) []runtime.Event {
	delete(w.due, id)
	w.told[id] = kills
	return append(to, runtime.Event{ID: id, Kind: runtime.EventOOM, OOMKills: kills})
}
