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
	// ResumeAfter is the token of an earlier call: go on behind what came with
	// it. Not together with Tail.
	ResumeAfter string
}

// Logs calls send with what the environment's process has written, oldest
// first, in batches of at most 256 lines or 64 KiB and a line, each with the
// token to go on behind it. A send without lines has a newer token alone: of
// where the reading begins, or of another file than before. A send that blocks
// costs no memory: what is not sent stays in the files. The lines are send's
// only until it returns. An error of send is returned as it is. ENV_NOT_FOUND,
// FIELD_INVALID for a token that is none of this log or has a Tail with it.
func (m *Manager) Logs(ctx context.Context, req LogRequest, send func(lines []logfile.Line, token string) error) error {
	env, err := m.Get(ctx, req.Project, req.Environment)
	if err != nil {
		return err
	}
	if !req.Until.IsZero() && req.Since.After(req.Until) {
		return problem.New(problem.FieldInvalid, "since is later than until: no line is of that time").WithField("since").
			WithHint("let since come before until, or leave one of them out")
	}
	batch := logBatch{env: env.ID, send: send}
	selection := logfile.Selection{
		Since: req.Since, Until: req.Until, Stream: req.Stream, Tail: req.Tail, Follow: req.Follow,
		Idle: batch.flush,
		Gone: func(ctx context.Context) bool {
			_, err := m.cfg.Store.Environment(ctx, env.ID)
			return errdefs.IsNotFound(err) || problem.Of(err) != nil && problem.Of(err).Reason == problem.EnvNotFound
		},
	}
	if req.ResumeAfter != "" {
		if req.Tail != nil {
			return problem.New(problem.FieldInvalid, "tail and resume_after both say where to begin").WithField("tail").
				WithHint("leave tail out to go on behind what was read")
		}
		after, err := parseLogToken(env.ID, req.ResumeAfter)
		if err != nil {
			return err
		}
		selection.After = &after
	}
	return logfile.Read(ctx, m.logPath(env.ID), selection, batch.add)
}

// logBatch collects lines. Their data is copied into one buffer, which is used
// again.
type logBatch struct {
	env   string
	send  func([]logfile.Line, string) error
	lines []logfile.Line
	data  []byte
	sent  bool   // something was
	file  uint64 // that the last token is of
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
		return b.flush(line.End)
	}
	return nil
}

// flush sends what there is, and the place behind it.
func (b *logBatch) flush(end logfile.Mark) error {
	file, err := end.File()
	if err != nil {
		return err
	}
	if len(b.lines) == 0 && b.sent && file == b.file {
		return nil
	}
	at, err := end.Position()
	if err != nil {
		return err
	}
	b.sent, b.file = true, file
	err = b.send(b.lines, logToken(b.env, at))
	b.lines, b.data = b.lines[:0], b.data[:0]
	return err
}
