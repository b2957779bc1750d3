package cli

import (
	"context"
	"errors"
	"io"

	"connectrpc.com/connect/v2"
	"github.com/spf13/cobra"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) envWatch() *cobra.Command {
	request := &remotegpuv1.WatchEnvironmentsRequest{}
	again := reconnect{note: func(text string) { a.say("%s", text) }}
	cmd := &cobra.Command{
		Use: "watch", Short: "Show environments as they change, until interrupted", Args: cobra.NoArgs,
		Long: `watch shows every environment as it is and then each change. With -o json each
line is one message: an environment, or {"synced":true} after those that
existed when the watch began.

When the connection breaks it is made again, and the watch goes on where it was.
A node whose daemon was restarted does not know what came before: a line on
standard error says so, and all environments follow as they are, with -o json up
to another {"synced":true}. What is not among them is deleted.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			request.Project = a.project
			return a.followChanges(cmd.Context(), c, request, &again)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&request.ResumeAfter, "resume-after", "", "only what came after this resumeToken of an earlier watch's json")
	flags.StringVarP(&request.LabelSelector, "selector", "l", "", "only with these labels: key=value,key!=value,key,!key")
	flags.DurationVar(&again.lostFor, "reconnect-for", lostFor, "how long to try again when the connection is lost")
	filters(cmd, "selector")
	return cmd
}

// followChanges shows changes until ctx ends or the node is away for too long.
func (a *app) followChanges(ctx context.Context, c *clients, request *remotegpuv1.WatchEnvironmentsRequest, again *reconnect) error {
	seen := false
	for {
		err := changes(ctx, c, request, func(message *remotegpuv1.WatchEnvironmentsResponse) error {
			if err := a.showChange(message); err != nil {
				return err
			}
			if token := message.GetResumeToken(); token != "" { // none before all was seen
				request.ResumeAfter = token
			}
			seen = true
			again.reached()
			return nil
		})
		// A token that the caller has kept is the caller's affair.
		if seen && request.GetResumeAfter() != "" && connect.CodeOf(err) == connect.CodeOutOfRange {
			a.say("what changed meanwhile is not known any more: all environments follow as they are")
			request.ResumeAfter = ""
			continue
		}
		if !seen {
			return err
		}
		if err := again.wait(ctx, err); err != nil {
			return err
		}
	}
}

// changes gives each message of a watch to each. It ends with an error.
func changes(ctx context.Context, c *clients, request *remotegpuv1.WatchEnvironmentsRequest, each func(*remotegpuv1.WatchEnvironmentsResponse) error) error {
	stream, err := c.environments.WatchEnvironments(ctx, request)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // abandoned, or at its end
	for {
		message, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return connect.NewError(connect.CodeUnavailable, "the node ended the watch")
		}
		if err != nil {
			return err
		}
		if err := each(message); err != nil {
			return err
		}
	}
}

func (a *app) showChange(message *remotegpuv1.WatchEnvironmentsResponse) error {
	if a.output == "json" {
		return a.jsonLine(message)
	}
	e := message.GetEnvironment()
	if e == nil {
		return nil
	}
	note := problemText(e.GetProblem())
	if note == "" {
		note = portList(e.GetPortMappings())
	}
	if e.GetDesktopReady() {
		note += " desktop ready"
	}
	if message.GetOutOfSelection() {
		note = "not selected any more"
	}
	return a.printf("%s  %-20s %-9s %s\n", moment(e.GetUpdatedAt()), plain(e.GetName()), envLife(e), plain(note))
}
