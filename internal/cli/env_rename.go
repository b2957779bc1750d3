package cli

import (
	"github.com/spf13/cobra"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) envRename() *cobra.Command {
	request := &remotegpuv1.RenameEnvironmentRequest{}
	cmd := &cobra.Command{
		Use: "rename NAME NEWNAME", Short: "Give an environment another name", Args: cobra.ExactArgs(2), ValidArgsFunction: a.completeEnvs,
		Long: `rename gives an environment another name. Its host name follows when it is
started the next time, unless it was created with one of its own.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			request.Environment, request.Name, request.Project = args[0], args[1], a.project
			response, err := c.environments.RenameEnvironment(cmd.Context(), request)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(response.GetEnvironment())
			}
			a.sayRestartNeeded(response.GetEnvironment().GetName(), response.GetEnvironment().GetRestartNeeded())
			return a.printf("%s: renamed to %s\n", args[0], response.GetEnvironment().GetName())
		},
	}
	etagFlag(cmd.Flags(), &request.Etag)
	return cmd
}
