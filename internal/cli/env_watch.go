package cli

import (
	"errors"
	"io"

	"github.com/spf13/cobra"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) envWatch() *cobra.Command {
	request := &remotegpuv1.WatchEnvironmentsRequest{}
	cmd := &cobra.Command{
		Use: "watch", Short: "Show environments as they change, until interrupted", Args: cobra.NoArgs,
		Long: `watch shows every environment as it is and then each change. With -o json each
line is one message: an environment, or {"synced":true} after those that
existed when the watch began.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			request.Project = a.project
			stream, err := c.environments.WatchEnvironments(cmd.Context(), request)
			if err != nil {
				return err
			}
			defer func() { _ = stream.Close() }() // read to its end, or abandoned
			for {
				message, err := stream.Receive()
				if errors.Is(err, io.EOF) {
					return &failure{
						Code: "unavailable", Message: "the node ended the watch",
						Hints: []string{"start it again"}, exit: exitUnavailable,
					}
				}
				if err != nil {
					return err
				}
				if err := a.showChange(message); err != nil {
					return err
				}
			}
		},
	}
	cmd.Flags().StringVar(&request.ResumeAfter, "resume-after", "", "only what came after this resumeToken of an earlier watch's json")
	cmd.Flags().StringVarP(&request.LabelSelector, "selector", "l", "", "only with these labels: key=value,key!=value,key,!key")
	return cmd
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
