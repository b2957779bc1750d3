package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http/httptrace"
	"os"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

const maxStdin = 1 << 20

const execUsage = "remotegpu env exec NAME -- COMMAND [ARG...]"

// execFlags are the flags of commands that run in an environment.
type execFlags struct {
	stdin, terminal, unary bool
	env, envFiles          []string
	workdir, user          string
	timeout                time.Duration
}

func (a *app) envExec() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use: "exec [-it] NAME [--] COMMAND [ARG...]", Short: "Run a command in a running environment",
		Long: `exec runs one command and shows what it writes. No shell is involved: for one,
run sh -c '…', or remotegpu env shell. Flags of exec come before the command; what
follows it is the command's own. The -- may be left out, unless one of the
command's arguments is another --.

A file or pipe on standard input is passed on; -i passes a terminal on too,
--stdin=false nothing. -t gives the command a terminal of its own: with -it it
is as if it ran here, Ctrl-C and changes of the window's size included.

When remotegpu is interrupted or ends, so does the command: it gets SIGHUP,
and SIGKILL after 5 seconds, with all that it has started.

--unary makes one plain call instead of a stream, for proxies that cannot do
HTTP/2: at most 1 MiB of input and of each output, shown at the end. It is also
what -o json does.

Exit codes: the command's own, 128 + signal where one ended it, or
  124  it was killed at the timeout
  125  remotegpu itself failed (the message says how)
  126  the command cannot be run: it is no program, or not the user's to execute
  127  there is no such command in the environment
  130  interrupted`,
		Args: func(cmd *cobra.Command, args []string) error {
			a.exec = true
			if cmd.ArgsLenAtDash() != 1 || len(args) < 2 {
				return usagef(execUsage, "name one environment and, after --, a command")
			}
			return nil
		},
		ValidArgsFunction: a.completeEnvs,
		RunE: func(cmd *cobra.Command, args []string) error {
			env, err := a.variables(f.env, f.envFiles)
			if err != nil {
				return err
			}
			if f.timeout < 0 {
				return usagef("leave --timeout out for the default", "--timeout %s is negative", f.timeout)
			}
			said := cmd.Flags().Changed("stdin")
			if f.unary || a.output == "json" {
				if f.terminal {
					return usagef("leave -t out", "one plain call has no terminal")
				}
				return a.unaryExec(cmd, &f, said, &remotegpuv1.RunCommandRequest{
					Environment: args[0], Project: a.project, Argv: args[1:], Env: env, Workdir: f.workdir, User: f.user,
				})
			}
			s := &execStream{app: a, stdin: f.stdin || !said && piped(a.stdin), terminal: f.terminal, timeout: f.timeout}
			return s.run(cmd.Context(), &remotegpuv1.ExecStart{
				Environment: args[0], Project: a.project, Argv: args[1:], Env: env, Workdir: f.workdir, User: f.user,
			})
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		a.exec = true
		return usagef(execUsage+"; flags of the command come after it", "%s", err.Error())
	})
	f.register(cmd)
	flags := cmd.Flags()
	flags.BoolVarP(&f.stdin, "stdin", "i", false, "pass standard input on (default: when it is a file or a pipe)")
	flags.BoolVarP(&f.terminal, "tty", "t", false, "give the command a terminal")
	flags.BoolVar(&f.unary, "unary", false, "one plain call instead of a stream")
	flags.DurationVar(&f.timeout, "timeout", 0, "the command is killed after this time (default: never, with --unary or -o json 1m0s)")
	return cmd
}

func (f *execFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVarP(&f.env, "env", "e", nil, "variable NAME=VALUE; NAME alone takes it from here")
	flags.StringArrayVar(&f.envFiles, "env-file", nil, "file with variables, one per line")
	flags.StringVarP(&f.workdir, "workdir", "w", "", "working directory")
	flags.StringVarP(&f.user, "user", "u", "", "user, or user:group")
}

func (a *app) envShell() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use: "shell NAME", Short: "Open a shell in a running environment",
		Long: `shell runs /bin/bash, or where there is none /bin/sh, as env exec -it does.
Exit codes are those of env exec.`,
		Args: func(cmd *cobra.Command, args []string) error {
			a.exec = true
			return cobra.ExactArgs(1)(cmd, args)
		},
		ValidArgsFunction: a.completeEnvs,
		RunE: func(cmd *cobra.Command, args []string) error {
			env, err := a.variables(f.env, f.envFiles)
			if err != nil {
				return err
			}
			for _, shell := range []string{"/bin/bash", "/bin/sh"} {
				s := &execStream{app: a, stdin: true, terminal: onTerminal(a.stdin)}
				err = s.run(cmd.Context(), &remotegpuv1.ExecStart{
					Environment: args[0], Project: a.project, Argv: []string{shell}, Env: env, Workdir: f.workdir, User: f.user,
				})
				if _, ended := errors.AsType[commandExit](err); err == nil || ended || a.explain(cmd.Context(), err).Reason != "COMMAND_NOT_FOUND" {
					return err
				}
			}
			return err
		},
	}
	a.ownCodes(cmd)
	f.register(cmd)
	return cmd
}

// ownCodes has the exit codes of env exec count from the first flag on, as they
// do there: 2, for a wrong one, could be the command's.
func (a *app) ownCodes(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		a.exec = true
		return err
	})
}

// unaryExec runs the command with one plain call.
func (a *app) unaryExec(cmd *cobra.Command, f *execFlags, said bool, request *remotegpuv1.RunCommandRequest) error {
	var err error
	if request.Stdin, err = a.input(cmd.Context(), f.stdin, said); err != nil {
		return err
	}
	if f.timeout > 0 {
		request.Timeout = durationpb.New(f.timeout)
	}
	c, err := a.dial()
	if err != nil {
		return err
	}
	// A failure to connect is as any other. With a connection the node may have
	// got the command, and who is told that there is none would run it twice.
	var connected atomic.Bool
	ctx := httptrace.WithClientTrace(cmd.Context(), &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	response, err := c.environments.RunCommand(ctx, request)
	if remote, ok := errors.AsType[*connect.Error](err); ok && connected.Load() && ctx.Err() == nil &&
		!remote.IsRemote() && (cutOff(err) || remote.Code() == connect.CodeUnavailable) {
		return wentAway()
	}
	if err != nil {
		return a.showUnfinished(err)
	}
	return a.showResult(response)
}

// showUnfinished shows what a command wrote before it was killed at its timeout,
// which the node sends with the failure, and returns that.
func (a *app) showUnfinished(err error) error {
	remote, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return err
	}
	for _, detail := range remote.Details() {
		message, bad := connectproto.UnmarshalErrorDetail(detail)
		if response, is := message.(*remotegpuv1.RunCommandResponse); bad == nil && is {
			shown := a.showResult(response)
			if _, exit := errors.AsType[commandExit](shown); shown != nil && !exit {
				return errors.Join(err, shown)
			}
		}
	}
	return err
}

// input reads what is passed on. Without a word from the caller only a file or
// a pipe is read: a terminal would wait for somebody to type.
func (a *app) input(ctx context.Context, wanted, said bool) ([]byte, error) {
	if said && !wanted || !said && !piped(a.stdin) {
		return nil, nil
	}
	data, err := io.ReadAll(io.LimitReader(untilDone(ctx, a.stdin), maxStdin+1))
	if err != nil {
		return nil, fmt.Errorf("read standard input: %w", err)
	}
	if len(data) > maxStdin {
		return nil, usagef("leave --unary out", "standard input is larger than 1 MiB")
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
