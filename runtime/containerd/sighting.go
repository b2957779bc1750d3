package containerd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"

	"github.com/remotegpu/remotegpu/runtime"
)

// sightingAge is for how long what List has read will do for Parts.
const sightingAge = 5 * time.Second

// sighting is what serves containers and what is known of them, read in this
// order. To read it costs containerd a question to each shim and us a look at each
// process of the host, so a pass, which wants it twice, reads it once.
type sighting struct {
	at         time.Time
	processes  map[string]*task.Process // first processes, by container
	servants   []servant
	incomplete error // why there are no servants; nil: they are all
	records    []containers.Container
}

// look reads all that.
func (e *Engine) look(ctx context.Context) (*sighting, error) {
	seen := &sighting{at: time.Now()}
	// Tasks first: one that ends meanwhile has a record all the same, while a
	// container made meanwhile shows up without its task, as it was.
	response, err := e.tasks.List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", e.explain(ctx, err))
	}
	seen.processes = make(map[string]*task.Process, len(response.Tasks))
	for _, process := range response.Tasks {
		seen.processes[process.ID] = process // 1.6 names the container in ID alone
	}
	if seen.servants, seen.incomplete = e.servants(); seen.incomplete != nil {
		seen.servants = nil
	}
	if seen.records, err = e.store.List(ctx); err != nil {
		return nil, errors.Join(seen.incomplete, fmt.Errorf("list containers: %w", e.explain(ctx, err)))
	}
	return seen, nil
}

// justListed is what List has read a moment ago, once; nil: nothing whole.
func (e *Engine) justListed() *sighting {
	seen := e.listed.Swap(nil)
	if seen == nil || seen.incomplete != nil || time.Since(seen.at) > sightingAge {
		return nil
	}
	return seen
}

// parts are the tasks that containerd knows, and the processes that serve containers.
func (s *sighting) parts() []runtime.Part {
	parts := make([]runtime.Part, 0, len(s.processes)+len(s.servants))
	for id := range s.processes {
		parts = append(parts, runtime.Part{Kind: runtime.FoundTask, Name: id, EnvID: id})
	}
	for _, servant := range s.servants {
		parts = append(parts, runtime.Part{Kind: runtime.FoundProcess, Name: strconv.Itoa(servant.pid), EnvID: servant.id})
	}
	return parts
}

// serving are the processes of containers that run: their first ones, and those that
// serve them.
func (s *sighting) serving(all []runtime.ContainerStatus) []int {
	pids := make([]int, 0, 3*len(all))
	runs := make(map[string]bool, len(all))
	for i := range all {
		if all[i].Running {
			runs[all[i].ID] = true
			pids = append(pids, all[i].PID)
		}
	}
	for _, servant := range s.servants {
		if runs[servant.id] {
			pids = append(pids, servant.pid)
		}
	}
	return pids
}

// Intact tells whether all processes live that List saw last at work for containers
// that run.
func (e *Engine) Intact() bool {
	served := e.served.Load()
	return served != nil && !slices.ContainsFunc(*served, died)
}
