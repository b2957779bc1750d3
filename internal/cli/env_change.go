package cli

import (
	"context"

	"github.com/spf13/cobra"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) envPause() *cobra.Command {
	request, w := &remotegpuv1.PauseEnvironmentRequest{}, &waiting{}
	cmd := a.lifeCommand("pause", "Freeze the processes of environments; their memory is kept", "paused", w,
		func(ctx context.Context, c *clients, name, id string) (*remotegpuv1.Environment, *remotegpuv1.Operation, error) {
			request.Environment, request.Project, request.RequestId = name, a.project, id
			response, err := c.environments.PauseEnvironment(ctx, request)
			return response.GetEnvironment(), response.GetOperation(), err
		})
	etagFlag(cmd.Flags(), &request.Etag)
	return cmd
}

func (a *app) envResume() *cobra.Command {
	request, w := &remotegpuv1.ResumeEnvironmentRequest{}, &waiting{}
	cmd := a.lifeCommand("resume", "Let paused environments go on", "running", w,
		func(ctx context.Context, c *clients, name, id string) (*remotegpuv1.Environment, *remotegpuv1.Operation, error) {
			request.Environment, request.Project, request.RequestId = name, a.project, id
			response, err := c.environments.ResumeEnvironment(ctx, request)
			return response.GetEnvironment(), response.GetOperation(), err
		})
	cmd.Aliases = []string{"unpause"}
	etagFlag(cmd.Flags(), &request.Etag)
	return cmd
}
