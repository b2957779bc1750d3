package cli

import (
	"context"
	"slices"
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
		Long: short + ". With -o json several are one line each.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if w.requestID != "" && len(args) > 1 {
				return usagef("name one environment", "a request id belongs to one request")
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			// All begin before the first is waited for: their grace periods pass at
			// the same time. One that fails does not keep the others from being done.
			ctx, since := cmd.Context(), time.Now()
			var failures []error
			var all []begun
			for _, name := range unique(args) {
				if ctx.Err() != nil {
					break
				}
				e, op, err := do(ctx, c, name, w.id())
				if err != nil {
					failures = append(failures, err)
					continue
				}
				all = append(all, begun{name: name, e: e, op: op, several: len(args) > 1})
			}
			for i, b := range all {
				rest := *w
				if i > 0 {
					b.op, rest.timeout = a.meanwhile(ctx, c, w, b.op, since)
				}
				if err := a.lead(ctx, c, b, past, &rest); err != nil {
					failures = append(failures, err)
				}
			}
			return a.firstOf(ctx, failures)
		},
	}
	w.register(cmd.Flags())
	return cmd
}

// unique is the list without what comes again.
func unique(names []string) []string {
	seen := make(map[string]bool, len(names))
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		again := seen[name]
		seen[name] = true
		return again
	})
}

// begun is an operation on an environment, nil when nothing was to be done.
type begun struct {
	name string
	e    *remotegpuv1.Environment
	op   *remotegpuv1.Operation
	// It is one of several: in JSON it is a line.
	several bool
}

// meanwhile is what has become of an operation while others were waited for, and
// what is left of the time that its caller waits. What it cannot learn it leaves
// to who follows the operation.
func (a *app) meanwhile(ctx context.Context, c *clients, w *waiting, op *remotegpuv1.Operation, since time.Time) (*remotegpuv1.Operation, time.Duration) {
	left := w.timeout
	if left > 0 {
		left = max(left-time.Since(since), 1)
	}
	if op == nil || w.noWait {
		return op, left
	}
	if response, err := c.operations.GetOperation(ctx, &remotegpuv1.GetOperationRequest{Id: op.GetId()}); err == nil {
		op = response.GetOperation()
	}
	return op, left
}

// lead waits for what has begun, and tells what has become of the environment.
func (a *app) lead(ctx context.Context, c *clients, b begun, past string, w *waiting) error {
	e, show := b.e, a.json
	if b.several {
		show = a.jsonLine
	}
	op, err := a.await(ctx, c, w, b.op)
	if err != nil {
		return err
	}
	if past == "deleted" {
		if a.output == "json" {
			return show(op)
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
		return show(e)
	}
	if w.noWait {
		past = "operation " + op.GetId()
		if op == nil {
			past = "nothing to do"
		}
	}
	return a.printf("%s: %s\n", b.name, past)
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
	cmd.ValidArgsFunction = a.completeEnvsIn(remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_STOPPED, remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_ERROR)
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
