package containerd

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remotegpu/remotegpu/runtime/operation"
)

const progressInterval = 250 * time.Millisecond

// report tells progress at an interval until it is stopped. A look that fails
// is left out: the work itself will say so.
func report(ctx context.Context, now func(context.Context) (operation.Progress, error), progress func(operation.Progress)) (stop func()) {
	if progress == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var working sync.WaitGroup
	working.Go(func() {
		tick := time.NewTicker(progressInterval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if at, err := now(ctx); err == nil && ctx.Err() == nil {
					progress(at)
				}
			case <-ctx.Done():
				return
			}
		}
	})
	return func() { cancel(); working.Wait() }
}

// blob is one piece of an image on its way.
type blob struct {
	desc  ocispec.Descriptor
	key   string // of its ingest, or its upload
	layer bool
	state operation.LayerState
	done  int64
}

// progressOf sums blobs up.
func progressOf(step string, blobs []*blob) operation.Progress {
	at := operation.Progress{Step: step}
	for _, b := range blobs {
		at.Done, at.Total = at.Done+b.done, at.Total+b.desc.Size
		if b.layer {
			at.Layers = append(at.Layers, operation.Layer{
				Digest: b.desc.Digest.String(), Done: b.done, Total: b.desc.Size, State: b.state,
			})
		}
	}
	return at
}

// pulling knows what a pull is about to fetch, and what of it is here.
type pulling struct {
	engine *Engine

	mu       sync.Mutex // also held while it looks
	blobs    []*blob    // each once, in the order in which they became known
	known    map[digest.Digest]bool
	target   *ocispec.Descriptor // what the reference names
	missing  *ocispec.Descriptor // what the registry does not have of it
	config   *ocispec.Descriptor
	chain    []digest.Digest // of the layers, once the configuration is here
	layers   []digest.Digest // as the manifest has them
	unpacked int             // so many of chain are
}

func newPulling(e *Engine) *pulling {
	return &pulling{engine: e, known: make(map[digest.Digest]bool)}
}

// note wraps the handler that walks the image.
func (p *pulling) note(next images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		children, err := next.Handle(ctx, desc)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.add(ctx, desc)
		if p.target == nil {
			p.target = &desc
		}
		if errdefs.IsNotFound(err) {
			if _, absent := p.engine.client.ContentStore().Info(ctx, desc.Digest); errdefs.IsNotFound(absent) {
				p.missing = &desc
			}
		}
		for _, child := range children {
			p.add(ctx, child)
			if images.IsManifestType(desc.MediaType) && images.IsLayerType(child.MediaType) {
				p.layers = append(p.layers, child.Digest)
			} else if images.IsConfigType(child.MediaType) {
				p.config = &child
			}
		}
		return children, err
	})
}

// found is what the reference names, nil when that is not known, and what the
// registry does not have of it.
func (p *pulling) found() (target, missing *ocispec.Descriptor) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.target, p.missing
}

// add takes note of a blob. Layers become known before they are fetched: one
// that is here now was here before.
func (p *pulling) add(ctx context.Context, desc ocispec.Descriptor) {
	if p.known[desc.Digest] {
		return
	}
	p.known[desc.Digest] = true
	b := &blob{
		desc: desc, key: remotes.MakeRefKey(ctx, desc), layer: images.IsLayerType(desc.MediaType), state: operation.LayerWaiting,
	}
	if _, err := p.engine.client.ContentStore().Info(ctx, desc.Digest); err == nil {
		b.state, b.done = operation.LayerPresent, desc.Size
	}
	p.blobs = append(p.blobs, b)
}

// now looks how far it is.
func (p *pulling) now(ctx context.Context) (operation.Progress, error) {
	store := p.engine.client.ContentStore()
	statuses, err := store.ListStatuses(ctx)
	if err != nil {
		return operation.Progress{}, err
	}
	active := make(map[string]content.Status, len(statuses))
	for _, status := range statuses {
		active[status.Ref] = status
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.blobs {
		if b.done == b.desc.Size && b.state != operation.LayerWaiting && b.state != operation.LayerTransferring {
			continue
		}
		if status, found := active[b.key]; found {
			b.state, b.done = operation.LayerTransferring, status.Offset
		} else if _, err := store.Info(ctx, b.desc.Digest); err == nil {
			b.state, b.done = operation.LayerTransferred, b.desc.Size
		}
	}
	p.lookAtSnapshots(ctx)
	return progressOf("pull", p.blobs), ctx.Err()
}

// lookAtSnapshots takes note of the layers that have been unpacked.
func (p *pulling) lookAtSnapshots(ctx context.Context) {
	if p.chain == nil && p.config != nil {
		var config ocispec.Image
		text, err := content.ReadBlob(ctx, p.engine.client.ContentStore(), *p.config)
		if err != nil || json.Unmarshal(text, &config) != nil {
			return // not here yet, or nothing that an unpack will like
		}
		p.chain = identity.ChainIDs(config.RootFS.DiffIDs)
	}
	for p.unpacked < min(len(p.chain), len(p.layers)) {
		if _, err := p.engine.snapshots.Stat(ctx, p.chain[p.unpacked].String()); err != nil {
			return
		}
		for _, b := range p.blobs {
			if b.desc.Digest != p.layers[p.unpacked] {
				continue
			}
			if b.state == operation.LayerWaiting || b.state == operation.LayerTransferring {
				return // another image has it unpacked; it is still to come
			}
			if b.state == operation.LayerTransferred {
				b.state = operation.LayerUnpacked
			}
		}
		p.unpacked++
	}
}

// pushing knows what a push is to send.
type pushing struct {
	tracker docker.StatusTracker
	blobs   []*blob
}

func newPushing(ctx context.Context, tracker docker.StatusTracker, all []ocispec.Descriptor) *pushing {
	p := &pushing{tracker: tracker}
	for _, desc := range all {
		p.blobs = append(p.blobs, &blob{
			desc: desc, key: remotes.MakeRefKey(ctx, desc), layer: images.IsLayerType(desc.MediaType), state: operation.LayerWaiting,
		})
	}
	return p
}

// now looks how far it is.
func (p *pushing) now(context.Context) (operation.Progress, error) {
	for _, b := range p.blobs {
		status, err := p.tracker.GetStatus(b.key)
		switch {
		case err != nil: // not begun
		case status.Exists || status.MountedFrom != "":
			b.state, b.done = operation.LayerPresent, b.desc.Size
		case status.Committed:
			b.state, b.done = operation.LayerTransferred, b.desc.Size
		default:
			b.state, b.done = operation.LayerTransferring, status.Offset
		}
	}
	return progressOf("push", p.blobs), nil
}
