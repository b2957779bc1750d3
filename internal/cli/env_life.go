package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// change starts an operation on one environment.
type change func(ctx context.Context, c *clients, name, requestID string) (*remotegpuv1.Environment, *remotegpuv1.Operation, error)

// lifeCommand is a command that leads environments through their life.
func (a *app) lifeCommand(use, short, past string, w *waiting, do change) *cobra.Command {
	cmd := &cobra.Command{
		Use: use + " NAME...", Short: short, Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.completeEnvs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if w.requestID != "" && len(args) > 1 {
				return usagef("name one environment", "a request id belongs to one request")
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			// One that fails does not keep the others from being done.
			var first error
			for _, name := range args {
				err := a.lead(cmd.Context(), c, name, past, w, do)
				if err == nil {
					continue
				}
				if first == nil {
					first = err
				} else {
					a.report(a.explain(cmd.Context(), err))
				}
				if cmd.Context().Err() != nil {
					break
				}
			}
			return first
		},
	}
	w.register(cmd.Flags())
	return cmd
}

func (a *app) lead(ctx context.Context, c *clients, name, past string, w *waiting, do change) error {
	e, op, err := do(ctx, c, name, w.id())
	if err != nil {
		return err
	}
	if op, err = a.await(ctx, c, w, op); err != nil {
		return err
	}
	if past == "deleted" {
		if a.output == "json" {
			return a.json(op)
		}
	} else if !w.noWait {
		if e, err = a.environment(ctx, c, e.GetId()); err != nil {
			return err
		}
		if err := died(e); err != nil {
			return err
		}
	}
	if a.output == "json" {
		return a.json(e)
	}
	if w.noWait {
		past = "operation " + op.GetId()
		if op == nil {
			past = "nothing to do"
		}
	}
	return a.printf("%s: %s\n", name, past)
}

// died tells of an environment that is in error after all.
func died(e *remotegpuv1.Environment) error {
	if e.GetState() != remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_ERROR {
		return nil
	}
	f := problemFailure("environment "+e.GetName()+" is in error", e.GetProblem())
	f.exit = exitFailed
	if text := exitText(e.GetExit()); text != "" {
		f.Message += " (" + text + ")"
	}
	return f
}

func (a *app) envStart() *cobra.Command {
	request, w := &remotegpuv1.StartEnvironmentRequest{}, &waiting{}
	cmd := a.lifeCommand("start", "Start stopped or failed environments", "running", w,
		func(ctx context.Context, c *clients, name, id string) (*remotegpuv1.Environment, *remotegpuv1.Operation, error) {
			request.Environment, request.Project, request.RequestId = name, a.project, id
			response, err := c.environments.StartEnvironment(ctx, request)
			return response.GetEnvironment(), response.GetOperation(), err
		})
	etagFlag(cmd.Flags(), &request.Etag)
	return cmd
}

func (a *app) envStop() *cobra.Command {
	request, w, g := &remotegpuv1.StopEnvironmentRequest{}, &waiting{}, &grace{}
	cmd := a.lifeCommand("stop", "Stop environments; what they own is kept", "stopped", w,
		func(ctx context.Context, c *clients, name, id string) (*remotegpuv1.Environment, *remotegpuv1.Operation, error) {
			request.Environment, request.Project, request.RequestId = name, a.project, id
			request.Timeout = g.duration()
			response, err := c.environments.StopEnvironment(ctx, request)
			return response.GetEnvironment(), response.GetOperation(), err
		})
	g.register(cmd.Flags())
	etagFlag(cmd.Flags(), &request.Etag)
	return cmd
}

func (a *app) envRestart() *cobra.Command {
	request, w, g := &remotegpuv1.RestartEnvironmentRequest{}, &waiting{}, &grace{}
	cmd := a.lifeCommand("restart", "Stop and start environments", "running", w,
		func(ctx context.Context, c *clients, name, id string) (*remotegpuv1.Environment, *remotegpuv1.Operation, error) {
			request.Environment, request.Project, request.RequestId = name, a.project, id
			request.Timeout = g.duration()
			response, err := c.environments.RestartEnvironment(ctx, request)
			return response.GetEnvironment(), response.GetOperation(), err
		})
	g.register(cmd.Flags())
	etagFlag(cmd.Flags(), &request.Etag)
	return cmd
}

func (a *app) envRemove() *cobra.Command {
	request, w, g := &remotegpuv1.DeleteEnvironmentRequest{}, &waiting{}, &grace{}
	cmd := a.lifeCommand("rm", "Delete environments with all they own", "deleted", w,
		func(ctx context.Context, c *clients, name, id string) (*remotegpuv1.Environment, *remotegpuv1.Operation, error) {
			request.Environment, request.Project, request.RequestId = name, a.project, id
			request.Timeout = g.duration()
			response, err := c.environments.DeleteEnvironment(ctx, request)
			return nil, response.GetOperation(), err
		})
	cmd.Aliases = []string{"delete"}
	cmd.Flags().BoolVarP(&request.Force, "force", "f", false, "also one that runs: it is stopped first")
	g.register(cmd.Flags())
	etagFlag(cmd.Flags(), &request.Etag)
	return cmd
}

// grace is the flag for the time between SIGTERM and SIGKILL.
type grace struct {
	flags *pflag.FlagSet
	value time.Duration
}

func (g *grace) register(flags *pflag.FlagSet) {
	g.flags = flags
	flags.DurationVarP(&g.value, "grace", "t", 10*time.Second, "time between SIGTERM and SIGKILL; 0 kills at once")
}

// duration is nil when the caller leaves it to the node.
func (g *grace) duration() *durationpb.Duration {
	if !g.flags.Changed("grace") {
		return nil
	}
	return durationpb.New(g.value)
}

func etagFlag(flags *pflag.FlagSet, etag *string) {
	flags.StringVar(etag, "etag", "", "only if nothing changed since it had this etag")
}
