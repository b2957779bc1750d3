package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) imageCommand() *cobra.Command {
	return group("image", "Images of the node", a.imageList(), a.imageGet(), a.imagePull(), a.imageBuild(), a.imagePush(), a.imageTag(),
		a.imageImport(), a.imageExport(), a.imagePin(), a.imageUnpin(), a.imageUsage(), a.imagePrune(), a.imageRemove())
}

func (a *app) imageList() *cobra.Command {
	var page paging
	var q quiet
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List images by name", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			all, next, err := pages(&page, func(size int32, token string) ([]*remotegpuv1.Image, string, error) {
				response, err := c.images.ListImages(cmd.Context(), &remotegpuv1.ListImagesRequest{PageSize: size, PageToken: token})
				return response.GetImages(), response.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			if q.on {
				return identifiers(a, all, (*remotegpuv1.Image).GetName)
			}
			if a.output == "json" {
				return a.json(&remotegpuv1.ListImagesResponse{Images: all, NextPageToken: next})
			}
			rows := make([][]string, 0, len(all))
			for _, image := range all {
				rows = append(rows, []string{
					image.GetName(), shortDigest(image.GetDigest()), size(image.GetSizeBytes()), image.GetPlatform(),
					fmt.Sprint(len(image.GetUsedBy())), mark(image.GetPinned()), age(image.GetUpdatedAt()),
				})
			}
			return a.table([]string{"NAME", "DIGEST", "SIZE", "PLATFORM", "USED", "PINNED", "AGE"}, rows)
		},
	}
	page.register(a, cmd, 0)
	q.register(a, cmd, "names")
	return cmd
}

// shortDigest is enough of a digest to tell images apart.
func shortDigest(digest string) string {
	const length = len("sha256:") + 12
	return digest[:min(len(digest), length)]
}

func (a *app) imageBuild() *cobra.Command {
	w, request := &waiting{}, &remotegpuv1.BuildImageRequest{}
	cmd := &cobra.Command{
		Use: "build SOURCE", Short: "Build one of the images the node carries, for example desktop-base",
		Args: cobra.ExactArgs(1), ValidArgs: []string{"desktop-base"},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			request.RequestId, request.Source, request.Project = w.id(), args[0], a.project
			response, err := c.images.BuildImage(cmd.Context(), request)
			if err != nil {
				return err
			}
			op, err := a.await(cmd.Context(), c, w, response.GetOperation())
			if err != nil {
				return err
			}
			return a.showMade(w, op)
		},
	}
	w.register(cmd.Flags())
	cmd.Flags().StringVar(&request.Tag, "tag", "", "reference of the result (default remotegpu/SOURCE:latest)")
	cmd.Flags().StringVar(&request.Base, "base", "", "base image (default: the source's own where its registry answers, else one made from the distribution's mirror)")
	cmd.Flags().BoolVar(&request.NoCache, "no-cache", false, "build every step anew")
	return cmd
}

// showMade tells what a pull, a push or a build made, and from what.
func (a *app) showMade(w *waiting, op *remotegpuv1.Operation) error {
	if a.output == "json" {
		return a.json(op)
	}
	if w.noWait {
		return a.printf("%s\n", op.GetId())
	}
	result := op.GetResult()
	base := result["base"]
	if reason := result["base_reason"]; reason != "" {
		base += " (" + reason + ")"
	}
	return a.facts([][]string{{"Image", result["image"]}, {"Digest", result["digest"]}, {"Base", base}})
}
