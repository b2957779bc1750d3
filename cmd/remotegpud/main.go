// Command remotegpud is the node daemon.
package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/remotegpu/internal/config"
	"github.com/remotegpu/remotegpu/internal/node"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/version"
	"github.com/remotegpu/remotegpu/runtime"
)

// exitConfig is EX_CONFIG of sysexits.h: starting again does not help.
const exitConfig = 78

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	command := root(stdout, stderr)
	command.SetArgs(args)
	err := command.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	text, code := "remotegpud: "+err.Error()+"\n", 1
	for _, p := range problem.All(err) {
		if p.Hint != "" {
			text += "Try: " + p.Hint + "\n"
		}
		if p.Reason == problem.DatabaseNewer || p.Reason == problem.ConfigInvalid {
			code = exitConfig
		}
	}
	if _, err := io.WriteString(stderr, text); err != nil {
		return 1
	}
	return code
}

func root(stdout, stderr io.Writer) *cobra.Command {
	var path string
	load := func(command *cobra.Command) (config.Config, error) {
		return config.Load(path, !command.Flags().Changed("config"))
	}
	command := &cobra.Command{
		Use:   "remotegpud",
		Short: "Runs environments with GPUs and desktops on this host",
		Long: "remotegpud runs environments on this host and serves the API. It needs root.\n\n" +
			"It exits with 78 when its configuration or its database cannot be used, 1 on any other failure.",
		Args: cobra.NoArgs, SilenceErrors: true, SilenceUsage: true, Version: version.Version,
		RunE: func(command *cobra.Command, _ []string) error {
			cfg, err := load(command)
			if err != nil {
				return err
			}
			return serve(command.Context(), cfg, stderr)
		},
	}
	command.SetOut(stdout)
	command.SetErr(stderr)
	command.PersistentFlags().StringVar(&path, "config", config.DefaultPath, "configuration file")
	configCommand := &cobra.Command{Use: "config", Short: "Show or check the configuration"}
	configCommand.AddCommand(
		&cobra.Command{
			Use: "default", Short: "Print the default configuration with its comments", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				text, err := config.Default().Marshal()
				if err != nil {
					return err
				}
				_, err = stdout.Write(text)
				return err
			},
		},
		&cobra.Command{
			Use: "check", Short: "Check the configuration file", Args: cobra.NoArgs,
			RunE: func(command *cobra.Command, _ []string) error {
				cfg, err := load(command)
				if err != nil {
					return err
				}
				return node.CheckConfig(cfg)
			},
		},
	)
	command.AddCommand(configCommand, &cobra.Command{
		Use: "backup FILE", Short: "Write a consistent copy of the database, also while the daemon runs", Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			cfg, err := load(command)
			if err != nil {
				return err
			}
			log, err := newLog(cfg, stderr)
			if err != nil {
				return err
			}
			return node.Backup(command.Context(), cfg, args[0], log)
		},
	}, cleanUp(load, stderr), stopEnvironments(load, stderr), gpuHelper())
	return command
}

// cleanUp is the command that removes a node from the host.
func cleanUp(load func(*cobra.Command) (config.Config, error), stderr io.Writer) *cobra.Command {
	var force bool
	command := &cobra.Command{
		Use: "cleanup", Short: "Remove namespaces, links and rules of environments from the host",
		Long: "Removes every network namespace, link and firewall rule of environments, and their control group when it is empty. The daemon must be\n" +
			"stopped and its containers deleted: it is refused while an environment runs, or while another node of this host has something there.",
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			cfg, err := load(command)
			if err != nil {
				return err
			}
			log, err := newLog(cfg, stderr)
			if err != nil {
				return err
			}
			return node.CleanUp(command.Context(), cfg, force, log)
		},
	}
	command.Flags().BoolVar(&force, "force", false, "also while environments run: they lose their network and their ports until they are restarted")
	return command
}

// stopEnvironments is the command that a unit runs when the host goes down.
func stopEnvironments(load func(*cobra.Command) (config.Config, error), stderr io.Writer) *cobra.Command {
	var timeout time.Duration
	command := &cobra.Command{
		Use: "stop-environments", Short: "End the processes of all environments before the host goes down",
		Long: "Ends the processes of all environments, as before a shutdown of the host: without it the host waits for those that ignore\n" +
			"SIGTERM, and then kills them. The daemon must be stopped. The next start of the daemon does what restart policies say.",
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			cfg, err := load(command)
			if err != nil {
				return err
			}
			log, err := newLog(cfg, stderr)
			if err != nil {
				return err
			}
			return node.StopEnvironments(command.Context(), cfg, timeout, log)
		},
	}
	command.Flags().DurationVar(&timeout, "timeout", runtime.DefaultStopTimeout, "time between the stop signal and SIGKILL")
	return command
}

func serve(ctx context.Context, cfg config.Config, stderr io.Writer) (err error) {
	log, err := newLog(cfg, stderr)
	if err != nil {
		return err
	}
	defer surviveHangups(ctx, log)()
	n, err := node.New(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	return n.Run(ctx)
}

// surviveHangups has SIGHUP logged instead of ending the daemon: scripts send it
// to have daemons read their configuration again, and a terminal that closes does.
// What the daemon starts gets the signal as ever.
func surviveHangups(ctx context.Context, log *slog.Logger) (stop func()) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	go func() {
		for range hangups {
			log.WarnContext(ctx, "SIGHUP does nothing; restart remotegpud to have it read its configuration: environments run on")
		}
	}()
	return func() {
		signal.Stop(hangups)
		close(hangups)
	}
}

func newLog(cfg config.Config, stderr io.Writer) (*slog.Logger, error) {
	level, err := cfg.Log.Least()
	if err != nil {
		return nil, err // not of a configuration that was loaded
	}
	options := &slog.HandlerOptions{Level: level}
	if cfg.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(stderr, options)), nil
	}
	return slog.New(slog.NewTextHandler(stderr, options)), nil
}
