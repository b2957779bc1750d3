package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// showImages names images, or writes the answer that has them.
func (a *app) showImages(answer proto.Message, images []*remotegpuv1.Image) error {
	if a.output == "json" {
		return a.json(answer)
	}
	for _, image := range images {
		if err := a.printf("%s\n", plain(image.GetName())); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) imageTag() *cobra.Command {
	return &cobra.Command{
		Use: "tag REFERENCE NAME", Short: "Give an image another name", Args: cobra.ExactArgs(2), ValidArgsFunction: a.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			response, err := c.images.TagImage(cmd.Context(), &remotegpuv1.TagImageRequest{Reference: args[0], Tag: args[1]})
			if err != nil {
				return err
			}
			return a.showImages(response.GetImage(), []*remotegpuv1.Image{response.GetImage()})
		},
	}
}

func (a *app) imagePin() *cobra.Command {
	return a.pinning("pin", "Keep images from being deleted and pruned", func(ctx context.Context, c *clients, ref string) (*remotegpuv1.Image, error) {
		response, err := c.images.PinImage(ctx, &remotegpuv1.PinImageRequest{Reference: ref})
		return response.GetImage(), err
	})
}

func (a *app) imageUnpin() *cobra.Command {
	return a.pinning("unpin", "Let images be deleted and pruned again", func(ctx context.Context, c *clients, ref string) (*remotegpuv1.Image, error) {
		response, err := c.images.UnpinImage(ctx, &remotegpuv1.UnpinImageRequest{Reference: ref})
		return response.GetImage(), err
	})
}

func (a *app) pinning(verb, short string, set func(ctx context.Context, c *clients, ref string) (*remotegpuv1.Image, error)) *cobra.Command {
	return &cobra.Command{
		Use: verb + " REFERENCE...", Short: short, Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), args, func(ref string) error {
				image, err := set(cmd.Context(), c, ref)
				if err != nil {
					return err
				}
				if a.output == "json" {
					return a.jsonLine(image)
				}
				return a.printf("%s: %sned\n", plain(image.GetName()), verb)
			})
		},
	}
}

func (a *app) imageRemove() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm REFERENCE...", Aliases: []string{"delete"}, Short: "Delete images", Args: cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), args, func(ref string) error {
				response, err := c.images.DeleteImage(cmd.Context(), &remotegpuv1.DeleteImageRequest{Reference: ref, Force: force})
				switch {
				case err != nil:
					return err
				case a.output != "json":
					return a.printf("%s: deleted\n", plain(response.GetName()))
				case len(args) == 1:
					return a.json(response)
				default:
					return a.jsonLine(response)
				}
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also when environments were made from it; they keep the layers they have")
	return cmd
}

func (a *app) imagePrune() *cobra.Command {
	request, age := &remotegpuv1.PruneImagesRequest{}, time.Duration(0)
	cmd := &cobra.Command{
		Use: "prune", Short: "Delete the images that nobody needs", Args: cobra.NoArgs,
		Long: `prune deletes the images that no environment was made from, that no pending
operation names and that are not pinned.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			request.MinAge = durationpb.New(age)
			response, err := c.images.PruneImages(cmd.Context(), request)
			if err != nil {
				return err
			}
			if err := a.showImages(response, response.GetImages()); err != nil || a.output == "json" {
				return err
			}
			verb := "freed"
			if request.GetDryRun() {
				verb = "would be freed"
			}
			return a.printf("%s %s\n", size(response.GetFreedBytes()), verb)
		},
	}
	cmd.Flags().BoolVar(&request.DryRun, "dry-run", false, "only say what would be deleted")
	cmd.Flags().DurationVar(&age, "min-age", 0, "leave images whose name was set since this long ago, for example 24h")
	return cmd
}

func (a *app) imageUsage() *cobra.Command {
	return &cobra.Command{
		Use: "df", Short: "Show how much of the disk images take", Args: cobra.NoArgs,
		Long: `df shows what each image takes: its content as it came, and unpacked; and of
both what would go with it, since nothing else has it. The last row is what none
of them has: layers of snapshots, and what environments and snapshots hold of
images that were deleted or whose name was given to another one; it goes with
those. A build's cache and pulls at work are in it, too.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			usage, err := c.images.GetImageUsage(cmd.Context(), &remotegpuv1.GetImageUsageRequest{})
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(usage)
			}
			rows := make([][]string, 0, len(usage.GetImages()))
			for _, image := range usage.GetImages() {
				rows = append(rows, []string{
					image.GetName(), size(image.GetContentBytes()), size(image.GetSnapshotBytes()),
					size(image.GetContentUniqueBytes() + image.GetSnapshotUniqueBytes()), fmt.Sprint(len(image.GetUsedBy())), mark(image.GetPinned()),
				})
			}
			if content, unpacked := usage.GetUnlistedContentBytes(), usage.GetUnlistedSnapshotBytes(); content+unpacked > 0 {
				rows = append(rows, []string{"(no image)", size(content), size(unpacked), "-", "-", "-"})
			}
			if err := a.table([]string{"NAME", "CONTENT", "UNPACKED", "UNIQUE", "USED", "PINNED"}, rows); err != nil {
				return err
			}
			return a.printf("%s of content and %s unpacked in all, %s can be pruned\n",
				size(usage.GetContentBytes()), size(usage.GetSnapshotBytes()), size(usage.GetReclaimableBytes()))
		},
	}
}

func mark(yes bool) string {
	if yes {
		return "yes"
	}
	return "-"
}
