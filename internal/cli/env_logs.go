package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) envLogs() *cobra.Command {
	request := &remotegpuv1.GetLogsRequest{}
	var since, until, tail string
	again := reconnect{note: func(text string) { a.say("%s", text) }}
	var stdout, stderr, timestamps bool
	cmd := &cobra.Command{
		Use: "logs NAME", Short: "Show what an environment has written", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeEnvs,
		Long: `logs shows what the environment's process has written, oldest first: its
standard output on standard output, its errors on standard error. The log is
kept across restarts and goes with the environment; the oldest part goes when
it grows beyond what the node keeps (64 MiB unless configured).

With -f it goes on until the environment is deleted. When the connection breaks,
because the node's daemon is restarted for example, it is made again, and every
line comes exactly once. Where lines are missing because the oldest part of the
log went before it was read, or its file was deleted, a line on standard error
says so.

With -o json each line is one line of the log: time, stream, data (base64) and
whether it goes on in the next one.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			request.Environment, request.Project = args[0], a.project
			if tail != "all" {
				lines, err := strconv.ParseInt(tail, 10, 64)
				if err != nil || lines < 0 {
					return usagef("write a number of lines, or all", "--tail %q is neither a number from 0 on nor all", tail)
				}
				request.Tail = &lines
			}
			if stdout != stderr {
				request.Stream = remotegpuv1.LogStream_LOG_STREAM_STDOUT
				if stderr {
					request.Stream = remotegpuv1.LogStream_LOG_STREAM_STDERR
				}
			}
			var err error
			if request.Since, err = instant("since", since); err != nil {
				return err
			}
			if request.Until, err = instant("until", until); err != nil {
				return err
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			view := logView{app: a, timestamps: timestamps, begun: make(map[remotegpuv1.LogStream]bool)}
			return errors.Join(a.followLogs(cmd.Context(), c, request, &view, &again), view.end())
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&request.Follow, "follow", "f", false, "go on with what is written from now on, until interrupted")
	flags.DurationVar(&again.lostFor, "reconnect-for", lostFor, "with -f: how long to try again when the connection is lost")
	flags.StringVarP(&tail, "tail", "n", "all", "only the last so many lines")
	flags.StringVar(&since, "since", "", "only lines written since: 10m (ago), 2026-01-02T15:04:05Z, 2026-01-02 15:04 (time of here), 2026-01-02 or Unix seconds")
	flags.StringVar(&until, "until", "", "only lines written before: as for --since")
	flags.BoolVar(&stdout, "stdout", false, "only standard output")
	flags.BoolVar(&stderr, "stderr", false, "only errors")
	flags.BoolVarP(&timestamps, "timestamps", "t", false, "show when each line was written")
	return cmd
}

// followLogs shows lines until there are no more. A follower goes on behind the
// last line that it has shown when the connection breaks.
func (a *app) followLogs(ctx context.Context, c *clients, request *remotegpuv1.GetLogsRequest, view *logView, again *reconnect) error {
	for {
		err := logs(ctx, c, request, func(message *remotegpuv1.GetLogsResponse) error {
			if err := view.show(message.GetLines()); err != nil {
				return err
			}
			if token := message.GetResumeToken(); token != "" { // older nodes send none
				request.ResumeAfter, request.Tail = token, nil
			}
			again.reached()
			return nil
		})
		if err == nil || !request.GetFollow() || request.GetResumeAfter() == "" {
			return err
		}
		if err := again.wait(ctx, err); err != nil {
			return err
		}
	}
}

// logs gives each message of a log to each until the stream ends.
func logs(ctx context.Context, c *clients, request *remotegpuv1.GetLogsRequest, each func(*remotegpuv1.GetLogsResponse) error) error {
	stream, err := c.environments.GetLogs(ctx, request)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // read to its end, or abandoned
	for {
		message, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := each(message); err != nil {
			return err
		}
	}
}

// logView shows lines and puts those together that came in parts.
type logView struct {
	app        *app
	timestamps bool
	open       remotegpuv1.LogStream // of the line whose end has not come yet
	// begun are the streams whose last line came without its end, shown as a
	// line of its own or not.
	begun map[remotegpuv1.LogStream]bool
}

func (v *logView) show(lines []*remotegpuv1.LogLine) error {
	// One write for each run of lines of a stream: pipes and terminals are slow.
	var pending []byte
	var to io.Writer
	flush := func() error {
		if len(pending) == 0 {
			return nil
		}
		if _, err := to.Write(pending); err != nil {
			return fmt.Errorf("write output: %w", err)
		}
		pending = pending[:0]
		return nil
	}
	for _, line := range lines {
		if v.app.output == "json" {
			if err := v.app.jsonLine(line); err != nil {
				return err
			}
			continue
		}
		begun := v.begun[line.GetStream()]
		v.begun[line.GetStream()] = line.GetPartial()
		if begun && v.open != line.GetStream() && len(line.GetData()) == 0 && !line.GetPartial() {
			continue // the other stream has come between: that line is ended already
		}
		if next := v.writer(line.GetStream()); next != to {
			if err := flush(); err != nil {
				return err
			}
			to = next
		}
		if v.open != 0 && v.open != line.GetStream() {
			if err := v.end(); err != nil {
				return err
			}
		}
		if v.timestamps && v.open == 0 {
			pending = append(pending, v.stamp(line)...)
		}
		pending = append(pending, line.GetData()...)
		v.open = line.GetStream()
		if !line.GetPartial() {
			pending, v.open = append(pending, '\n'), 0
		}
	}
	return flush()
}

func (v *logView) stamp(line *remotegpuv1.LogLine) string {
	if line.GetTime() == nil {
		return "- "
	}
	return line.GetTime().AsTime().Format("2006-01-02T15:04:05.000000000Z07:00") + " "
}

func (v *logView) writer(stream remotegpuv1.LogStream) io.Writer {
	if stream == remotegpuv1.LogStream_LOG_STREAM_STDERR {
		return v.app.stderr
	}
	return v.app.stdout
}

// end ends a line whose last part does not come.
func (v *logView) end() error {
	if v.open == 0 {
		return nil
	}
	to := v.writer(v.open)
	v.open = 0
	if _, err := io.WriteString(to, "\n"); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}
