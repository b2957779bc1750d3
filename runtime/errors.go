package runtime

import "github.com/remotegpu/remotegpu/internal/problem"

// ErrSlowWatcher ends a watch whose receiver fell too far behind.
var ErrSlowWatcher = problem.New(problem.Unavailable, "the watcher fell behind").WithHint("watch again; the first messages bring you up to date")
