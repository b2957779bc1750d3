package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/imageref"
)

// PruneRequest says which of the images that nobody needs to remove.
type PruneRequest struct {
	DryRun bool
	MinAge time.Duration // since their name was set
}

// Pruned is what was removed, or would be.
type Pruned struct {
	Images []Image // by name
	Freed  int64   // bytes
}

// PruneImages removes the images that no environment was made from, that no
// pending operation names and that are not pinned. One that cannot be removed
// does not keep the others; the error is of all such.
func (m *Manager) PruneImages(ctx context.Context, req PruneRequest) (Pruned, error) {
	candidates, err := m.prunable(ctx, time.Now().Add(-req.MinAge))
	if err != nil {
		return Pruned{}, err
	}
	contents, err := m.cfg.Images.Contents(ctx)
	if err != nil {
		return Pruned{}, err
	}
	if !req.DryRun {
		if candidates, err = m.prune(ctx, candidates, time.Now().Add(-req.MinAge)); len(candidates) == 0 {
			return Pruned{}, err
		}
	}
	return Pruned{Images: candidates, Freed: freedBy(contents, candidates)}, err
}

// prune removes those candidates that still are when nobody can claim them.
func (m *Manager) prune(ctx context.Context, candidates []Image, before time.Time) (removed []Image, err error) {
	var errs []error
	claimed := make(map[string]bool)
	for _, image := range candidates {
		release, err := m.claims.remove(ctx, image.Name)
		if errdefs.IsFailedPrecondition(err) {
			continue // somebody uses it now
		} else if err != nil {
			return nil, err
		}
		defer release()
		claimed[image.Name] = true
	}
	still, err := m.prunable(ctx, before)
	if err != nil {
		return nil, err
	}
	for _, image := range still {
		if !claimed[image.Name] {
			continue
		}
		switch err := m.cfg.Images.DeleteImage(ctx, image.Name); {
		case err == nil:
			removed = append(removed, image)
		case !errdefs.IsNotFound(err):
			errs = append(errs, fmt.Errorf("delete image %s: %w", image.Name, err))
		}
	}
	return removed, errors.Join(errs...)
}

// prunable lists the images that nobody needs and whose name was set before
// the time.
func (m *Manager) prunable(ctx context.Context, before time.Time) ([]Image, error) {
	images, err := m.cfg.Images.Images(ctx)
	if err != nil {
		return nil, err
	}
	used, err := m.imageUsers(ctx)
	if err != nil {
		return nil, err
	}
	pending, err := m.cfg.Store.Pending(ctx)
	if err != nil {
		return nil, fmt.Errorf("list pending operations: %w", err)
	}
	needed := make(map[string]bool)
	for _, op := range pending {
		var args BuildRequest
		_ = json.Unmarshal(op.Args, &args) // of other kinds: no base
		refs := []string{op.Target, args.Base}
		if op.Kind == KindBuild {
			refs = append(refs, BuildName(op.Target))
		}
		for _, ref := range refs {
			if name, err := imageref.Normalize(ref); err == nil {
				needed[name] = true
			}
		}
	}
	var free []Image
	for _, image := range images {
		if !image.Pinned && len(used.of(image)) == 0 && !needed[image.Name] && !image.UpdatedAt.After(before) {
			free = append(free, image)
		}
	}
	return free, nil
}
