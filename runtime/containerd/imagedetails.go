package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remotegpu/remotegpu/runtime"
)

// Details tells all about a local image.
func (e *Engine) Details(ctx context.Context, ref string) (runtime.ImageDetails, error) {
	record, err := e.record(ctx, ref)
	for err == nil {
		details, failed := e.details(ctx, record)
		if failed == nil {
			return details, nil
		}
		// Nothing keeps its content while it is read: it may have been removed, or
		// its name set to another.
		before := record.Target.Digest
		if record, err = e.record(ctx, ref); err == nil && record.Target.Digest == before {
			return runtime.ImageDetails{}, failed
		}
	}
	return runtime.ImageDetails{}, err
}

func (e *Engine) details(ctx context.Context, record images.Image) (runtime.ImageDetails, error) {
	manifest, manifestDigest, config, err := e.load(ctx, record)
	if err != nil {
		return runtime.ImageDetails{}, err
	}
	all, err := e.platformsOf(ctx, record.Target, make(map[digest.Digest]bool))
	if err != nil {
		return runtime.ImageDetails{}, fmt.Errorf("read image %s: %w", record.Name, e.explain(ctx, err))
	}
	said := &config.Config
	return runtime.ImageDetails{
		Image:     describe(record, newImage(&manifest, manifestDigest, &config)),
		CreatedAt: builtAt(config.Created), Author: config.Author,
		Config: runtime.ImageConfig{
			Entrypoint: said.Entrypoint, Command: said.Cmd, Workdir: said.WorkingDir, User: said.User, Env: variables(said.Env),
			ExposedPorts: slices.Sorted(maps.Keys(said.ExposedPorts)), Volumes: slices.Sorted(maps.Keys(said.Volumes)), StopSignal: said.StopSignal,
		},
		Layers: layersOf(&manifest, config.History), Platforms: all,
	}, nil
}

// builtAt is when an image says that it was built. Builders that do not want to
// say it write the year 1 or 0, which the API cannot.
func builtAt(said *time.Time) time.Time {
	if said == nil || said.UTC().Year() <= 1 {
		return time.Time{}
	}
	return said.UTC().Truncate(time.Millisecond)
}

// variables are those of a list of "NAME=value"; the last of a name wins.
func variables(list []string) map[string]string {
	all := make(map[string]string, len(list))
	for _, variable := range list {
		name, value, _ := strings.Cut(variable, "=")
		all[name] = value
	}
	return all
}

// layersOf are the layers of a manifest with what made them, where the history
// tells as many.
func layersOf(manifest *ocispec.Manifest, history []ocispec.History) []runtime.ImageLayer {
	var steps []string
	for _, step := range history {
		if !step.EmptyLayer {
			steps = append(steps, step.CreatedBy)
		}
	}
	layers := make([]runtime.ImageLayer, len(manifest.Layers))
	for i, layer := range manifest.Layers {
		layers[i] = runtime.ImageLayer{Digest: layer.Digest.String(), Size: layer.Size}
		if len(steps) == len(layers) {
			layers[i].CreatedBy = steps[i]
		}
	}
	return layers
}

// platformsOf are those that a target can be had for. What is no image (an
// attestation) and what cannot be told (neither the index says it, nor is the
// manifest here) is left out, and what was seen before.
func (e *Engine) platformsOf(ctx context.Context, target ocispec.Descriptor, seen map[digest.Digest]bool) ([]runtime.ImagePlatform, error) {
	if seen[target.Digest] {
		return nil, nil
	}
	seen[target.Digest] = true
	store := e.client.ContentStore()
	if images.IsManifestType(target.MediaType) {
		platform, err := platformOf(ctx, store, target)
		if errdefs.IsNotFound(err) || err == nil && platform.OS == "unknown" {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		_, missing, err := e.blobs(ctx, target)
		return []runtime.ImagePlatform{{
			Platform: platforms.Format(platform), Digest: target.Digest.String(), Present: len(missing) == 0,
		}}, err
	}
	if !images.IsIndexType(target.MediaType) {
		return nil, nil
	}
	children, err := images.Children(ctx, store, target)
	if errdefs.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var all []runtime.ImagePlatform
	for _, child := range children {
		more, err := e.platformsOf(ctx, child, seen)
		if err != nil {
			return nil, err
		}
		all = append(all, more...)
	}
	return all, nil
}

// platformOf is what a manifest is for: what its index says, or else its
// configuration.
func platformOf(ctx context.Context, store content.Store, target ocispec.Descriptor) (ocispec.Platform, error) {
	if target.Platform != nil {
		return *target.Platform, nil
	}
	blob, err := content.ReadBlob(ctx, store, target)
	if err != nil {
		return ocispec.Platform{}, err
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(blob, &manifest); err != nil {
		return ocispec.Platform{}, err
	}
	return images.ConfigPlatform(ctx, store, manifest.Config)
}
