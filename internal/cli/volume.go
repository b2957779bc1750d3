package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) volumeCommand() *cobra.Command {
	return group("volume", "Named volumes of the node", a.volumeList(), a.volumeCreate(), a.volumeGet(), a.volumeCopy(), a.volumeRemove())
}

func (a *app) volumeList() *cobra.Command {
	var page paging
	var q quiet
	request := &remotegpuv1.ListVolumesRequest{}
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List volumes by name", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			all, next, err := pages(&page, func(size int32, token string) ([]*remotegpuv1.Volume, string, error) {
				request.PageSize, request.PageToken = size, token
				response, err := c.volumes.ListVolumes(cmd.Context(), request)
				return response.GetVolumes(), response.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			if q.on {
				return identifiers(a, all, (*remotegpuv1.Volume).GetName)
			}
			if a.output == "json" {
				return a.json(&remotegpuv1.ListVolumesResponse{Volumes: all, NextPageToken: next})
			}
			rows := make([][]string, 0, len(all))
			for _, v := range all {
				rows = append(rows, []string{v.GetName(), volumeSize(v), fmt.Sprint(len(v.GetUsedBy())), age(v.GetCreatedAt())})
			}
			return a.table([]string{"NAME", "SIZE", "USED", "AGE"}, rows)
		},
	}
	cmd.Flags().BoolVar(&request.Sizes, "sizes", false, "measure their sizes too, which may take a while")
	page.register(a, cmd, 0)
	q.register(a, cmd, "names")
	return cmd
}

func volumeSize(v *remotegpuv1.Volume) string {
	if v.SizeBytes == nil {
		return "-"
	}
	return size(v.GetSizeBytes())
}

func (a *app) volumeCreate() *cobra.Command {
	return &cobra.Command{
		Use: "create NAME", Short: "Make an empty volume", Args: cobra.ExactArgs(1),
		Long: `create makes an empty volume. Environments make the volumes that they name by
themselves: env create -v NAME:/path.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			response, err := c.volumes.CreateVolume(cmd.Context(), &remotegpuv1.CreateVolumeRequest{Name: args[0]})
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(response.GetVolume())
			}
			return a.printf("%s\n", plain(response.GetVolume().GetName()))
		},
	}
}

func (a *app) volumeGet() *cobra.Command {
	return &cobra.Command{
		Use: "get NAME", Short: "Show one volume, with its size", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			response, err := c.volumes.GetVolume(cmd.Context(), &remotegpuv1.GetVolumeRequest{Name: args[0]})
			if err != nil {
				return err
			}
			v := response.GetVolume()
			if a.output == "json" {
				return a.json(v)
			}
			return a.facts([][]string{
				{"Name", v.GetName()},
				{"Node", v.GetNode()},
				{"Size", volumeSize(v)},
				{"Used by", strings.Join(a.namesOf(cmd.Context(), c, v.GetUsedBy()), ", ")},
				{"Created", moment(v.GetCreatedAt())},
			})
		},
	}
}

// namesOf are the names of environments, or the ids of those that have gone.
func (a *app) namesOf(ctx context.Context, c *clients, ids []string) []string {
	names := slices.Clone(ids)
	for i, id := range ids {
		if e, err := a.environment(ctx, c, id); err == nil {
			names[i] = plain(e.GetName())
		}
	}
	return names
}

func (a *app) volumeRemove() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME...", Aliases: []string{"delete"}, Short: "Delete volumes with their content", Args: cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), args, func(name string) error {
				response, err := c.volumes.DeleteVolume(cmd.Context(), &remotegpuv1.DeleteVolumeRequest{Name: name})
				if err != nil {
					return err
				}
				if a.output == "json" {
					return a.jsonLine(response)
				}
				return a.printf("%s: deleted\n", plain(name))
			})
		},
	}
}

// completeVolumes offers the volumes of the node.
func (a *app) completeVolumes(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.offer(cmd, args, prefix, func(ctx context.Context, c *clients) ([]cobra.Completion, error) {
		response, err := c.volumes.ListVolumes(ctx, &remotegpuv1.ListVolumesRequest{PageSize: 500})
		var found []cobra.Completion
		for _, v := range response.GetVolumes() {
			found = append(found, v.GetName())
		}
		return found, err
	})
}
