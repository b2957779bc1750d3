package cli

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) imageGet() *cobra.Command {
	return &cobra.Command{
		Use: "get IMAGE...", Aliases: []string{"inspect"}, Short: "Show images", Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.completeImages,
		Long: `get shows images with what they say of themselves, what they consist of, and what
they take of the disk. IMAGE is a reference, a digest, or the beginning of one:
at least four digits. With -o json several are one line each.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			usage, err := usageForMany(cmd.Context(), c, args)
			if err != nil {
				return err
			}
			for i, reference := range args {
				response, err := c.images.GetImage(cmd.Context(), &remotegpuv1.GetImageRequest{Reference: reference, Usage: usage == nil})
				image := response.GetImage()
				if d := image.GetDetails(); d != nil && usage != nil {
					d.Usage = usage[image.GetName()]
				}
				switch {
				case err != nil:
				case a.output == "json" && len(args) > 1:
					err = a.jsonLine(image)
				case a.output == "json":
					err = a.json(image)
				default:
					if i > 0 {
						err = a.printf("\n")
					}
					err = errors.Join(err, a.showImage(cmd.Context(), c, image))
				}
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// usageForMany is what each image takes of the disk, by name, measured once for
// all; nil for one image, which is asked for together with that. Measuring one
// takes as long as measuring all.
func usageForMany(ctx context.Context, c *clients, references []string) (map[string]*remotegpuv1.ImageUsage, error) {
	if len(references) == 1 {
		return nil, nil //nolint:nilnil // there is nothing to ask for
	}
	response, err := c.images.GetImageUsage(ctx, &remotegpuv1.GetImageUsageRequest{})
	if err != nil {
		return nil, err
	}
	usage := make(map[string]*remotegpuv1.ImageUsage)
	for _, one := range response.GetImages() {
		usage[one.GetName()] = one
	}
	return usage, nil
}

func (a *app) showImage(ctx context.Context, c *clients, image *remotegpuv1.Image) error {
	d := image.GetDetails()
	config := d.GetConfig()
	rows := [][]string{
		{"Name", image.GetName()},
		{"Other names", strings.Join(d.GetOtherNames(), ", ")},
		{"Digest", image.GetDigest()},
		{"Node", image.GetNode()},
		{"Platforms", platformsText(image)},
		{"Size", size(image.GetSizeBytes())},
		{"Content", usageText(d.GetUsage(), (*remotegpuv1.ImageUsage).GetContentBytes, (*remotegpuv1.ImageUsage).GetContentUniqueBytes)},
		{"Unpacked", usageText(d.GetUsage(), (*remotegpuv1.ImageUsage).GetSnapshotBytes, (*remotegpuv1.ImageUsage).GetSnapshotUniqueBytes)},
		{"Used by", strings.Join(a.namesOf(ctx, c, image.GetUsedBy()), ", ")},
		{"Pinned", strings.TrimPrefix(mark(image.GetPinned()), "-")},
		{"Named", moment(image.GetUpdatedAt())},
		{"Built", moment(d.GetCreatedAt())},
		{"Author", d.GetAuthor()},
		{"Entrypoint", strings.Join(config.GetEntrypoint(), " ")},
		{"Command", strings.Join(config.GetCommand(), " ")},
		{"Directory", config.GetWorkdir()},
		{"User", config.GetUser()},
		{"Stop signal", config.GetStopSignal()},
		{"Listens on", strings.Join(config.GetExposedPorts(), ", ")},
		{"Keeps data in", strings.Join(config.GetVolumes(), ", ")},
	}
	for _, name := range slices.Sorted(maps.Keys(config.GetEnv())) {
		rows = append(rows, []string{"Variable", name + "=" + config.GetEnv()[name]})
	}
	for _, name := range slices.Sorted(maps.Keys(image.GetLabels())) {
		rows = append(rows, []string{"Label", name + "=" + image.GetLabels()[name]})
	}
	for _, layer := range d.GetLayers() {
		rows = append(rows, []string{"Layer", strings.TrimSpace(
			shortDigest(layer.GetDigest()) + " " + size(layer.GetSizeBytes()) + " " + clip(layer.GetCreatedBy(), 80),
		)})
	}
	return a.facts(rows)
}

// platformsText names the platforms that an image can be had for.
func platformsText(image *remotegpuv1.Image) string {
	var texts []string
	for _, p := range image.GetDetails().GetPlatforms() {
		text := p.GetPlatform()
		if !p.GetPresent() {
			text += " (not here)"
		}
		texts = append(texts, text)
	}
	return orElse(strings.Join(texts, ", "), image.GetPlatform())
}

// usageText says what an image takes of the disk, and what nothing else needs of
// that. Nothing when it was not measured.
func usageText(u *remotegpuv1.ImageUsage, all, unique func(*remotegpuv1.ImageUsage) int64) string {
	if u == nil {
		return ""
	}
	return size(all(u)) + ", of which " + size(unique(u)) + " would go with it"
}

// clip is a text in one line of at most so many characters.
func clip(text string, most int) string {
	line := []rune(strings.Join(strings.Fields(text), " "))
	if len(line) <= most {
		return string(line)
	}
	return string(line[:most-1]) + "…"
}
