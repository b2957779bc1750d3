package cli

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) envWait() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "wait NAME...", Short: "Wait until environments have ended, and print their exit codes", Args: cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeEnvs,
		Long: `wait waits until each of the environments is stopped, has failed or is deleted,
no restart by its restart policy is to come and no operation works on it. One
that is paused has not ended. What has ended before is not waited for.

It prints the exit code of the last run of each, in the order of the names, and
"-" where none is known: of one that never ran, or was deleted before its end
was seen. With -o json it prints the environments as they ended.

The exit code of wait is 0 when all have ended, whatever their own codes. One
that failed without a run is told of as the failure that it is (exit code 8).`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			ends := &ends{app: a, several: len(args) > 1}
			find := func(name string) error {
				e, err := a.environment(cmd.Context(), c, name)
				if err == nil {
					ends.all = append(ends.all, &ending{name: name, e: e, over: hasEnded(e)})
				}
				return err
			}
			missing := a.each(cmd.Context(), args, find)
			if cmd.Context().Err() != nil {
				return missing
			}
			err = ends.wait(cmd.Context(), c, timeout)
			var failures []error
			for _, err := range append([]error{missing, err}, ends.failures...) {
				if err != nil {
					failures = append(failures, err)
				}
			}
			return a.firstOf(cmd.Context(), failures)
		},
	}
	cmd.Flags().Var((*span)(&timeout), "timeout", "wait at most this long (exit code 8); 0 waits until they have ended")
	return cmd
}

// hasEnded says that the environment does not run, and will not of itself.
func hasEnded(e *remotegpuv1.Environment) bool {
	switch e.GetState() {
	case remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_DELETED:
		return true
	case remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_STOPPED, remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_ERROR:
		// A restart by the policy is planned first, and then an operation.
		return !e.GetPaused() && e.GetRestartAt() == nil && e.GetOperation() == ""
	default:
		return false
	}
}

// ending is an environment whose end is waited for.
type ending struct {
	name string
	e    *remotegpuv1.Environment
	over bool
	seen bool // since the watch began anew
}

// ends are all whose end is waited for.
type ends struct {
	app      *app
	several  bool
	all      []*ending
	told     int // how many of them were told of
	failures []error
}

var errAllEnded = errors.New("all have ended")

// wait tells of the ends as they come, until all have come.
func (w *ends) wait(ctx context.Context, c *clients, timeout time.Duration) error {
	if done, err := w.tell(); done || err != nil {
		return err
	}
	// Not a deadline, see follow.
	watchCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if timeout > 0 {
		timer := time.AfterFunc(timeout, func() { cancel(errTimeout) })
		defer timer.Stop()
	}
	again := reconnect{lostFor: lostFor, note: func(text string) { w.app.say("%s", text) }}
	request := &remotegpuv1.WatchEnvironmentsRequest{Project: w.project()}
	reached := false
	for {
		for _, end := range w.all {
			end.seen = end.seen && request.GetResumeAfter() != ""
		}
		err := changes(watchCtx, c, request, func(message *remotegpuv1.WatchEnvironmentsResponse) error {
			if token := message.GetResumeToken(); token != "" {
				request.ResumeAfter = token
			}
			reached = true
			again.reached()
			w.take(message)
			done, err := w.tell()
			if err == nil && done {
				err = errAllEnded
			}
			return err
		})
		switch {
		case errors.Is(err, errAllEnded):
			return nil
		case watchCtx.Err() != nil:
			return w.left(context.Cause(watchCtx))
		case reached && request.GetResumeAfter() != "" && connect.CodeOf(err) == connect.CodeOutOfRange:
			// What changed meanwhile is not known any more. All follow as they
			// are; those that do not are deleted.
			request.ResumeAfter = ""
			continue
		case !reached:
			return err
		}
		if err := again.wait(watchCtx, err); err != nil {
			if watchCtx.Err() != nil {
				return w.left(context.Cause(watchCtx))
			}
			return err
		}
	}
}

// project is that of all of them; "", all projects, when there are several.
func (w *ends) project() string {
	project := w.all[0].e.GetProject()
	for _, end := range w.all {
		if end.e.GetProject() != project {
			return ""
		}
	}
	return project
}

// take takes in what has changed. After its end, one may be started again.
func (w *ends) take(message *remotegpuv1.WatchEnvironmentsResponse) {
	for _, end := range w.all {
		switch {
		case end.over:
		case message.GetEnvironment() != nil && message.GetEnvironment().GetId() == end.e.GetId():
			end.e, end.seen = message.GetEnvironment(), true
			end.over = hasEnded(end.e)
		case message.GetSynced() && !end.seen: // deleted before the watch began
			end.e = proto.CloneOf(end.e)
			end.e.State = remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_DELETED
			end.over = true
		}
	}
}

// tell prints the ends that have come, in the order of the names, and says
// whether those are all.
func (w *ends) tell() (bool, error) {
	for ; w.told < len(w.all) && w.all[w.told].over; w.told++ {
		e := w.all[w.told].e
		var err error
		switch {
		case w.app.output == "json" && w.several:
			err = w.app.jsonLine(e)
		case w.app.output == "json":
			err = w.app.json(e)
		case e.GetExit() == nil:
			err = w.app.printf("-\n")
		default:
			err = w.app.printf("%s\n", strconv.Itoa(int(e.GetExit().GetCode())))
		}
		if err != nil {
			return false, err
		}
		if e.GetExit() == nil && e.GetState() == remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_ERROR {
			w.failures = append(w.failures, died(e))
		}
	}
	return w.told == len(w.all), nil
}

// left says whose end has not come when the wait ends first.
func (w *ends) left(cause error) error {
	if !errors.Is(cause, errTimeout) {
		return cause
	}
	var names []string
	for _, end := range w.all {
		if !end.over {
			names = append(names, end.name)
		}
	}
	return &failure{
		Code: "deadline_exceeded", Message: "still not ended: " + strings.Join(unique(names), ", "),
		Hints: []string{"allow it more time with --timeout, or end it: remotegpu env stop " + strings.Join(unique(names), " ")}, exit: exitFailed,
	}
}
