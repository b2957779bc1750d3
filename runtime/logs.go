package runtime

import (
	"context"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/logfile"
)

// A batch of log lines is sent when it has so many lines or bytes, or when
// there is nothing more to read.
const (
	logBatchLines = 256
	logBatchBytes = 64 << 10
)

// LogRequest selects lines of an environment's log. Zero fields select all.
type LogRequest struct {
	Project     string
	Environment string // id or name
	Follow      bool   // go on, across restarts, until the environment is deleted
	Tail        *int64 // the last so many; nil: all
	Since       time.Time
	Until       time.Time
	Stream      logfile.Stream // 0: both
}

// Logs calls send with what the environment's process has written, oldest
// first, in batches of at most 256 lines or 64 KiB and a line. A send that
// blocks costs no memory: what is not sent stays in the files. The lines are
// send's only until it returns. An error of send is returned as it is. ENV_NOT_FOUND.
func (m *Manager) Logs(ctx context.Context, req LogRequest, send func([]logfile.Line) error) error {
	env, err := m.Get(ctx, req.Project, req.Environment)
	if err != nil {
		return err
	}
	batch := logBatch{send: send}
	err = logfile.Read(ctx, m.logPath(env.ID), logfile.Selection{
		Since: req.Since, Until: req.Until, Stream: req.Stream, Tail: req.Tail, Follow: req.Follow,
		Idle: batch.flush,
		Gone: func(ctx context.Context) bool {
			_, err := m.cfg.Store.Environment(ctx, env.ID)
			return errdefs.IsNotFound(err) || problem.Of(err) != nil && problem.Of(err).Reason == problem.EnvNotFound
		},
	}, batch.add)
	if err != nil {
		return err
	}
	return batch.flush()
}

// logBatch collects lines. Their data is copied into one buffer, which is used
// again.
type logBatch struct {
	send  func([]logfile.Line) error
	lines []logfile.Line
	data  []byte
}

func (b *logBatch) add(line logfile.Line) error {
	if b.data == nil {
		// No line is longer than what a reader reads at once, so this never
		// grows, and slices of it stay valid until the flush.
		b.data = make([]byte, 0, 2*logBatchBytes)
		b.lines = make([]logfile.Line, 0, logBatchLines)
	}
	start := len(b.data)
	b.data = append(b.data, line.Data...)
	line.Data = b.data[start:len(b.data):len(b.data)]
	b.lines = append(b.lines, line)
	if len(b.lines) >= logBatchLines || len(b.data) >= logBatchBytes {
		return b.flush()
	}
	return nil
}

func (b *logBatch) flush() error {
	if len(b.lines) == 0 {
		return nil
	}
	err := b.send(b.lines)
	b.lines, b.data = b.lines[:0], b.data[:0]
	return err
}
