package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/imageref"
	"github.com/remotegpu/remotegpu/internal/problem"
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

// prune removes those candidates that still are.
func (m *Manager) prune(ctx context.Context, candidates []Image, before time.Time) (removed []Image, err error) {
	var errs []error
	for _, image := range candidates {
		now, looked, err := m.pruneOne(ctx, image.Name, before)
		if err != nil {
			errs = append(errs, err)
		} else if now != nil {
			removed = append(removed, *now)
		}
		if ctx.Err() != nil || !looked { // the others would wait for the same
			break
		}
	}
	return removed, errors.Join(errs...)
}

// pruneOne removes an image that is prunable when nobody can claim it, and
// returns it; nil: it is not. Those before it took their time: somebody may have
// set its name, or need it, by now. looked is false when that cannot be told.
func (m *Manager) pruneOne(ctx context.Context, name string, before time.Time) (removed *Image, looked bool, err error) {
	release, err := m.claims.remove(ctx, name)
	if errdefs.IsFailedPrecondition(err) {
		return nil, true, nil // somebody uses it now
	} else if err != nil {
		return nil, true, err
	}
	defer release()
	still, err := m.prunable(ctx, before)
	if err != nil {
		return nil, false, err
	}
	at := slices.IndexFunc(still, func(image Image) bool { return image.Name == name })
	if at < 0 {
		return nil, true, nil // as above
	}
	err = m.cfg.Images.RemoveImage(ctx, still[at])
	if errdefs.IsNotFound(err) || err != nil && problem.Of(err).Reason == problem.ImageChanged {
		return nil, true, nil // as above
	} else if err != nil {
		return nil, true, fmt.Errorf("delete image %s: %w", name, err)
	}
	return &still[at], true, nil
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
		var args struct {
			Base      string // of a build
			Reference string `json:"reference"` // of an export
		}
		_ = json.Unmarshal(op.Args, &args) // of other kinds: neither
		refs := []string{op.Target, args.Base, args.Reference}
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
