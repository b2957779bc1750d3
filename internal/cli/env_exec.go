package cli

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

const maxStdin = 1 << 20

func (a *app) envExec() *cobra.Command {
	request := &remotegpuv1.RunCommandRequest{}
	var interactive bool
	var env, envFiles []string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "exec NAME -- COMMAND [ARG...]", Short: "Run a command in a running environment",
		Long: `exec runs one command and shows what it wrote when it has ended, at most 1 MiB
of each stream. No shell is involved: for one, run sh -c '…'.

A file or pipe on standard input is passed on, at most 1 MiB of it; --stdin
reads a terminal too, --stdin=false reads nothing.

Exit codes: the command's own, or
  124  it was killed at the timeout
  125  remotegpu itself failed (the message says how)
  127  there is no such command in the environment
  130  interrupted`,
		Args: func(cmd *cobra.Command, args []string) error {
			a.exec = true
			if cmd.ArgsLenAtDash() != 1 || len(args) < 2 {
				return usagef("remotegpu env exec NAME -- COMMAND [ARG...]", "name one environment and, after --, a command")
			}
			return nil
		},
		ValidArgsFunction: a.completeEnvs,
		RunE: func(cmd *cobra.Command, args []string) error {
			request.Environment, request.Project, request.Argv = args[0], a.project, args[1:]
			var err error
			if request.Env, err = a.variables(env, envFiles); err != nil {
				return err
			}
			if request.Stdin, err = a.input(interactive, cmd.Flags().Changed("stdin")); err != nil {
				return err
			}
			if cmd.Flags().Changed("timeout") {
				request.Timeout = durationpb.New(timeout)
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			response, err := c.environments.RunCommand(cmd.Context(), request)
			if err != nil {
				return err
			}
			return a.showResult(response)
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&interactive, "stdin", "i", false, "pass standard input on (default: when it is a file or a pipe)")
	flags.StringArrayVarP(&env, "env", "e", nil, "variable NAME=VALUE; NAME alone takes it from here")
	flags.StringArrayVar(&envFiles, "env-file", nil, "file with variables, one per line")
	flags.StringVarP(&request.Workdir, "workdir", "w", "", "working directory")
	flags.StringVarP(&request.User, "user", "u", "", "user, or user:group")
	flags.DurationVar(&timeout, "timeout", time.Minute, "the command is killed after this time")
	return cmd
}

// input reads what is passed on. Without a word from the caller only a file or
// a pipe is read: a terminal would wait for somebody to type.
func (a *app) input(wanted, said bool) ([]byte, error) {
	if said && !wanted || !said && !piped(a.stdin) {
		return nil, nil
	}
	data, err := io.ReadAll(io.LimitReader(a.stdin, maxStdin+1))
	if err != nil {
		return nil, fmt.Errorf("read standard input: %w", err)
	}
	if len(data) > maxStdin {
		return nil, usagef("mount a directory, or send it in parts", "standard input is larger than 1 MiB")
	}
	return data, nil
}

func piped(stream io.Reader) bool {
	file, ok := stream.(*os.File)
	if !ok {
		return stream != nil
	}
	info, err := file.Stat()
	return err == nil && (info.Mode().IsRegular() || info.Mode()&os.ModeNamedPipe != 0)
}

func (a *app) showResult(response *remotegpuv1.RunCommandResponse) error {
	if a.output == "json" {
		if err := a.json(response); err != nil {
			return err
		}
	} else {
		if err := a.printf("%s", response.GetStdout()); err != nil {
			return err
		}
		if _, err := a.stderr.Write(response.GetStderr()); err != nil {
			return fmt.Errorf("write output: %w", err)
		}
		for stream, cut := range map[string]bool{"output": response.GetStdoutTruncated(), "errors": response.GetStderrTruncated()} {
			if cut {
				a.say("Warning: the command's %s beyond 1 MiB were dropped", stream)
			}
		}
	}
	if code := response.GetExitCode(); code != 0 {
		return commandExit(code)
	}
	return nil
}
