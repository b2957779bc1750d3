// Package cli is the command line: one file per noun. It speaks to a node or
// a coordinator through the generated clients alone, never to containers or
// files of the daemon.
package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
)

// DefaultAddr is where a node listens for the command line.
const DefaultAddr = "unix:///run/remotegpu/node.sock"

// app is one run of the program: its streams, its global flags and, once a
// command asks for them, its clients.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string

	addr    string
	caCert  string
	project string
	output  string

	started bool // arguments and flags were good; errors are not about usage any more
	exec    bool // env exec: exit codes belong to the command
}

// Run runs the program with its arguments (without its name) and returns the
// exit code. It ends early, with 130, when ctx is cancelled.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, getenv func(string) string) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, getenv: getenv}
	root := a.root()
	root.SetArgs(execArgs(root, args))
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil && !a.started {
		err = usage(err)
	}
	return a.finish(ctx, err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "remotegpu",
		Short: "Environments with GPUs and a desktop in the browser",
		Long: `remotegpu creates environments: containers with GPUs, a desktop in the
browser, ports and names, on a node or, through a coordinator, on many.

Variables:
  REMOTEGPU_ADDR     unix:///path, http://host:port or https://host:port
                     (default ` + DefaultAddr + `)
  REMOTEGPU_TOKEN    bearer token, sent in the Authorization header
  REMOTEGPU_CACERT   PEM file with the certificate authority of an https address
  REMOTEGPU_PROJECT  project to work in

Exit codes:
  0    done
  1    unexpected failure, or what was compared differs (node firewall diff
       --exit-code)
  2    wrong usage, or the request is invalid
  3    not found
  4    exists already, or is not in a state for it
  5    a pool or a limit is exhausted
  6    the node or something it needs cannot be reached
  7    not allowed, or not authenticated
  8    took too long, or the operation failed without one of the causes above
  130  interrupted; what was started goes on
"env exec" has codes of its own, see its help.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return a.checkGlobals()
		},
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.addr, "addr", orElse(a.getenv("REMOTEGPU_ADDR"), DefaultAddr), "address of the API (REMOTEGPU_ADDR)")
	flags.StringVar(&a.caCert, "cacert", a.getenv("REMOTEGPU_CACERT"), "certificate authority of an https address, PEM file (REMOTEGPU_CACERT)")
	flags.StringVar(&a.project, "project", a.getenv("REMOTEGPU_PROJECT"), "project; empty: \"default\", in lists all (REMOTEGPU_PROJECT)")
	flags.StringVarP(&a.output, "output", "o", "table", "table for people, json for programs")
	a.complete(root, "output", "table", "json")
	root.AddCommand(a.envCommand(), a.desktopCommand(), a.imageCommand(), a.gpuCommand(), a.portCommand(), a.dnsCommand(), a.volumeCommand(),
		a.opCommand(), a.nodeCommand(), a.versionCommand())
	return root
}

func (a *app) checkGlobals() error {
	if a.output != "table" && a.output != "json" {
		return fmt.Errorf("output %q is neither table nor json", a.output)
	}
	a.started = true
	return nil
}

// group is a noun: a command that only has commands.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(commands...)
	return cmd
}

func orElse(value, otherwise string) string {
	if value != "" {
		return value
	}
	return otherwise
}

// sleep waits, or returns why ctx ended.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
