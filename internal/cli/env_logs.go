package cli

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) envLogs() *cobra.Command {
	request := &remotegpuv1.GetLogsRequest{}
	var since, until string
	var tail int64
	var stdout, stderr, timestamps bool
	cmd := &cobra.Command{
		Use: "logs NAME", Short: "Show what an environment has written", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeEnvs,
		Long: `logs shows what the environment's process has written, oldest first: its
standard output on standard output, its errors on standard error. The log is
kept across restarts and goes with the environment; the oldest part goes when
it grows beyond what the node keeps (64 MiB unless configured).

With -o json each line is one line of the log: time, stream, data (base64) and
whether it goes on in the next one.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			request.Environment, request.Project = args[0], a.project
			if cmd.Flags().Changed("tail") {
				if tail < 0 {
					return usagef("leave --tail out to see all", "--tail is 0 or more")
				}
				request.Tail = &tail
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
			stream, err := c.environments.GetLogs(cmd.Context(), request)
			if err != nil {
				return err
			}
			defer func() { _ = stream.Close() }() // read to its end, or abandoned
			view := logView{app: a, timestamps: timestamps}
			for {
				message, err := stream.Receive()
				if errors.Is(err, io.EOF) {
					return view.end()
				}
				if err != nil {
					return errors.Join(err, view.end())
				}
				if err := view.show(message.GetLines()); err != nil {
					return err
				}
			}
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&request.Follow, "follow", "f", false, "go on with what is written from now on, until interrupted")
	flags.Int64Var(&tail, "tail", 0, "only the last so many lines (default all)")
	flags.StringVar(&since, "since", "", "only lines written since: 10m, 2026-01-02T15:04:05Z")
	flags.StringVar(&until, "until", "", "only lines written before: 10m, 2026-01-02T15:04:05Z")
	flags.BoolVar(&stdout, "stdout", false, "only standard output")
	flags.BoolVar(&stderr, "stderr", false, "only errors")
	flags.BoolVarP(&timestamps, "timestamps", "t", false, "show when each line was written")
	return cmd
}

// instant reads a time, or how long ago it was.
func instant(flag, text string) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil
	}
	if ago, err := time.ParseDuration(text); err == nil {
		return timestamppb.New(time.Now().Add(-ago)), nil
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return nil, usagef("write it like 10m or 2026-01-02T15:04:05Z", "--%s %q is neither a duration nor a time", flag, text)
	}
	return timestamppb.New(at), nil
}

// logView shows lines and puts those together that came in parts.
type logView struct {
	app        *app
	timestamps bool
	open       remotegpuv1.LogStream // of the line whose end has not come yet
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
