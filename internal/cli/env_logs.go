package cli

import (
	"context"
	"errors"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) envLogs() *cobra.Command {
	request := &remotegpuv1.GetLogsRequest{}
	var since, until, tail string
	var stdout, stderr, timestamps bool
	var view *logView
	again := reconnect{note: func(text string) { view.note(text) }}
	cmd := &cobra.Command{
		Use: "logs NAME", Short: "Show what an environment has written", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeEnvs,
		Long: `logs shows what the environment's process has written, oldest first: its
standard output on standard output, its errors on standard error. The log is
kept across restarts and goes with the environment; the oldest part goes when
it grows beyond what the node keeps (64 MiB unless configured).

What is read of either output has whole lines, whatever is written to the other
in between. Where both go to one place, a terminal or with 2>&1, everything is
shown as it came: a line that the other output comes into ends there, and its
rest is a line of its own, with -t under its own time.

With -f it goes on until the environment is deleted. When the connection breaks,
because the node's daemon is restarted for example, it is made again, and every
line comes exactly once. Where lines are missing because the oldest part of the
log went before it was read, or its file was deleted, a line on standard error
says so.

With -o json each line is one line of the log: time, stream, data (base64) and
whether it goes on in the next one of its stream (partial).`,
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
			view = newLogView(a, timestamps)
			return errors.Join(a.followLogs(cmd.Context(), c, request, view, &again), view.end())
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
	filters(cmd, "since", "until")
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
