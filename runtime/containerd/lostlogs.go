package containerd

import (
	"context"
	"strings"

	"github.com/remotegpu/remotegpu/runtime"
)

// writtenBy begins the standard output of a task that a program of its own
// writes to a log (containerd's binary logging), as logURI makes it.
const writtenBy = "binary:"

// lookForWriters notes of containers that run without the writer of their log.
// Nobody starts another one: the pipes that it read were the shim's to give.
func (e *Engine) lookForWriters(ctx context.Context, all []runtime.ContainerStatus, seen *sighting) {
	var logged []*runtime.ContainerStatus
	for i := range all {
		if all[i].Running && strings.HasPrefix(seen.processes[all[i].ID].GetStdout(), writtenBy) {
			logged = append(logged, &all[i])
		}
	}
	if len(logged) == 0 {
		return
	}
	if seen.incomplete != nil { // nothing was found out
		e.cfg.Log.WarnContext(ctx, "whether the writers of logs run is not known", "error", seen.incomplete)
		return
	}
	writers := make(map[string]bool)
	for _, s := range seen.servants {
		if s.duty == writer {
			writers[s.id] = true
		}
	}
	for _, status := range logged {
		if writers[status.ID] {
			continue
		}
		// A writer ends with its container, perhaps since it was listed.
		process, err := e.task(ctx, status.ID)
		status.LogLost = err == nil && running(process) && int(process.Pid) == status.PID
	}
}
