package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) opCommand() *cobra.Command {
	return group("op", "Operations: the long work of a node", a.opList(), a.opGet(), a.opWatch(), a.opCancel())
}

func (a *app) opList() *cobra.Command {
	request := &remotegpuv1.ListOperationsRequest{}
	var states []string
	var page paging
	var q quiet
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List operations, newest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			request.Project = a.project
			if request.States, err = parseEnums[remotegpuv1.OperationState](states, "state",
				"OPERATION_STATE_", remotegpuv1.OperationState_value); err != nil {
				return err
			}
			if request.Target != "" { // a name stands for its environment; what is none is a reference
				if e, err := a.environment(cmd.Context(), c, request.Target); err == nil {
					request.Target = e.GetId()
				}
			}
			all, next, err := pages(&page, func(size int32, token string) ([]*remotegpuv1.Operation, string, error) {
				request.PageSize, request.PageToken = size, token
				response, err := c.operations.ListOperations(cmd.Context(), request)
				return response.GetOperations(), response.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			if q.on {
				return identifiers(a, all, (*remotegpuv1.Operation).GetId)
			}
			if a.output == "json" {
				return a.json(&remotegpuv1.ListOperationsResponse{Operations: all, NextPageToken: next})
			}
			rows := make([][]string, 0, len(all))
			names := a.environmentNames(cmd.Context(), c, all)
			for _, op := range all {
				rows = append(rows, []string{
					op.GetId(), op.GetKind(), orElse(names[op.GetTarget()], op.GetTarget()), opState(op), age(op.GetCreatedAt()), dash(opNote(op)),
				})
			}
			return a.table([]string{"ID", "KIND", "TARGET", "STATE", "AGE", "NOTE"}, rows)
		},
	}
	cmd.Flags().StringVar(&request.Target, "target", "", "only those that work on this environment or image reference")
	cmd.Flags().StringSliceVar(&request.Kinds, "kind", nil, "only of these kinds, for example environment.create or image.pull")
	cmd.Flags().StringSliceVar(&states, "state", nil, "only in these states: queued, running, succeeded, failed, cancelled")
	page.register(a, cmd, 50)
	q.register(a, cmd, "ids")
	filters(cmd, "target", "kind", "state")
	a.complete(cmd, "kind", "environment.create", "environment.start", "environment.stop", "environment.restart", "environment.delete",
		"environment.pause", "environment.resume", "environment.update", "environment.snapshot", "environment.rollback",
		"snapshot.export", "image.pull", "image.push", "image.build", "port.create", "port.update", "port.delete")
	a.complete(cmd, "state", "queued", "running", "succeeded", "failed", "cancelled")
	return cmd
}

// environmentNames are the names of the environments that operations work on, by
// id. Those that are deleted, or cannot be asked for, have none.
func (a *app) environmentNames(ctx context.Context, c *clients, ops []*remotegpuv1.Operation) map[string]string {
	names := make(map[string]string)
	if !slices.ContainsFunc(ops, func(op *remotegpuv1.Operation) bool { return !strings.ContainsAny(op.GetTarget(), "/:") }) {
		return names // all are of images
	}
	all, _, err := pages(&paging{}, func(size int32, token string) ([]*remotegpuv1.Environment, string, error) {
		response, err := c.environments.ListEnvironments(ctx, &remotegpuv1.ListEnvironmentsRequest{Project: a.project, PageSize: size, PageToken: token})
		return response.GetEnvironments(), response.GetNextPageToken(), err
	})
	if err != nil {
		return names
	}
	for _, e := range all {
		names[e.GetId()] = plain(e.GetName())
	}
	return names
}

func opState(op *remotegpuv1.Operation) string { return state(op.GetState(), "OPERATION_STATE_") }

func opNote(op *remotegpuv1.Operation) string {
	switch {
	case op.GetProblem() != nil:
		return problemText(op.GetProblem())
	case done(op):
		return ""
	case op.GetCancelRequested():
		return "being cancelled"
	default:
		return op.GetProgress().GetStep()
	}
}

func (a *app) showOperation(op *remotegpuv1.Operation) error {
	if a.output == "json" {
		return a.json(op)
	}
	rows := [][]string{
		{"Id", op.GetId()},
		{"Kind", op.GetKind()},
		{"Target", op.GetTarget()},
		{"Project", op.GetProject()},
		{"Node", op.GetNode()},
		{"State", opState(op)},
		{"Problem", problemText(op.GetProblem())},
		{"Try", op.GetProblem().GetHint()},
		{"Labels", pairs(op.GetLabels())},
		{"Arguments", pairs(op.GetArguments())},
		{"Result", pairs(op.GetResult())},
		{"Created", moment(op.GetCreatedAt())},
		{"Started", moment(op.GetStartedAt())},
		{"Finished", moment(op.GetFinishedAt())},
	}
	if at := op.GetProgress(); !done(op) && at.GetStep() != "" {
		step := at.GetStep()
		if at.GetTotal() > 0 {
			step += " " + amount(at.GetDone(), at.GetTotal())
		}
		rows = append(rows, []string{"Step", step})
		for _, layer := range at.GetLayers() {
			rows = append(rows, []string{"Layer", shortDigest(layer.GetDigest()) + " " + state(layer.GetState(), "LAYER_STATE_") + " " +
				amount(layer.GetDone(), layer.GetTotal())})
		}
	}
	if op.GetAttempts() > 1 {
		rows = append(rows, []string{"Attempts", fmt.Sprint(op.GetAttempts())})
	}
	return a.facts(rows)
}

func (a *app) opGet() *cobra.Command {
	return &cobra.Command{
		Use: "get ID", Short: "Show one operation", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeOpsIn(),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			response, err := c.operations.GetOperation(cmd.Context(), &remotegpuv1.GetOperationRequest{Id: args[0]})
			if err != nil {
				return err
			}
			return a.showOperation(response.GetOperation())
		},
	}
}

func (a *app) opWatch() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "watch ID", Short: "Follow an operation until it is done",
		Long: `watch follows an operation and exits as the command that started it would have:
0 when it did what was asked. With -o json each line is its state at that time.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeOps,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			response, err := c.operations.GetOperation(ctx, &remotegpuv1.GetOperationRequest{Id: args[0]})
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.streamOperation(ctx, c, response.GetOperation(), timeout)
			}
			op, err := a.follow(ctx, c, response.GetOperation(), timeout)
			if err != nil {
				return err
			}
			if err := outcome(op); err != nil {
				return err
			}
			return a.showOperation(op)
		},
	}
	cmd.Flags().Var((*span)(&timeout), "timeout", "wait at most this long (exit code 8); 0 waits until it is done")
	return cmd
}

// streamOperation prints each state of an operation as a line, the last one
// when it is done, and ends with its outcome.
func (a *app) streamOperation(ctx context.Context, c *clients, op *remotegpuv1.Operation, timeout time.Duration) error {
	if done(op) {
		if err := a.jsonLine(op); err != nil {
			return err
		}
		return outcome(op)
	}
	var shown *remotegpuv1.Operation
	note := func(text string) { a.say("%s", text) }
	op, err := states(ctx, c, op, timeout, note, func(now *remotegpuv1.Operation) error {
		if shown != nil && proto.Equal(shown, now) {
			return nil // a new connection begins with what the last one said
		}
		shown = now
		return a.jsonLine(now)
	})
	if err != nil {
		return err
	}
	return outcome(op)
}

func (a *app) opCancel() *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "cancel ID", Short: "Ask an operation to stop; what it took is given back",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeOps,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			response, err := c.operations.CancelOperation(cmd.Context(), &remotegpuv1.CancelOperationRequest{
				Id: args[0], Wait: durationpb.New(wait),
			})
			if err != nil {
				return err
			}
			return a.showOperation(response.GetOperation())
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", 10*time.Second, "wait at most this long until it has stopped; 0 returns at once")
	return cmd
}
