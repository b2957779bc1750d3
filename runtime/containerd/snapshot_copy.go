package containerd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remotegpu/remotegpu/internal/diskspace"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

const (
	// leaseTime is after how long containerd forgets what a daemon that never
	// came back has left.
	leaseTime    = 24 * time.Hour
	unpackSuffix = "-unpack" // of the layer that becomes a snapshot
	exportSuffix = "-export" // of the view that an export reads, and its lease
	thawTries    = 50
)

// CopyLayer makes a copy of a running container's writable layer a snapshot.
func (e *Engine) CopyLayer(ctx context.Context, id, snapshot string, progress func(operation.Progress)) (runtime.Layer, error) {
	layer, err := e.copyLayer(ctx, id, snapshot, progress)
	if err != nil {
		return runtime.Layer{}, fmt.Errorf("copy layer of container %s: %w", id, err)
	}
	return layer, nil
}

func (e *Engine) copyLayer(ctx context.Context, id, snapshot string, progress func(operation.Progress)) (layer runtime.Layer, err error) {
	unlock, err := e.building.snapshot(ctx, snapshot)
	if err != nil {
		return layer, err
	}
	defer unlock()
	record, ext, err := e.recordOf(ctx, id)
	if err != nil {
		return layer, err
	}
	info, err := e.snapshots.Stat(ctx, id)
	if err != nil {
		return layer, fmt.Errorf("get snapshot: %w", e.explain(ctx, err))
	}
	dirs, err := e.overlay(ctx, id)
	if err != nil {
		return layer, err
	}
	base, read, below := info.Parent, dirs[:1], []string(nil)
	if len(dirs) > e.cfg.MaxDepth { // as in commitLayer
		own, err := e.ownLayers(ctx, id, ext.Parent)
		if err != nil {
			return layer, err
		}
		if below := len(dirs) - len(own); below+1 > e.cfg.MaxDepth {
			return layer, e.tooDeep(below)
		}
		base, read, below = ext.Parent, dirs[:len(own)], dirs[len(own):]
	}
	key := snapshotKey(snapshot)
	leased, release, err := e.hold(ctx, key)
	if err != nil {
		return layer, err
	}
	defer func() { err = release(err) }()
	blob, err := e.readFrozen(leased, id, func() (ocispec.Descriptor, error) {
		return e.writeDiff(leased, key, read, below, progress)
	})
	if err != nil {
		return layer, err
	}
	if progress != nil {
		progress(operation.Progress{Step: "unpacking", Done: 0, Total: blob.Size})
	}
	if err := e.unpackDiff(leased, snapshot, base, dirs[0], blob, ext); err != nil {
		return layer, err
	}
	return e.describeLayer(ctx, key, record.Image, ext)
}

// overlay are the directories of a container's layers, uppermost first.
func (e *Engine) overlay(ctx context.Context, key string) ([]string, error) {
	mounts, err := e.snapshots.Mounts(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("get snapshot: %w", e.explain(ctx, err))
	}
	return e.overlayDirs(mounts)
}

func (e *Engine) overlayDirs(mounts []mount.Mount) ([]string, error) {
	// The lowest layer alone is a bind mount.
	if len(mounts) != 1 || mounts[0].Type != "overlay" && (mounts[0].Type != "bind" || e.cfg.Snapshotter != DefaultSnapshotter) {
		return nil, problem.New(problem.SnapshotNotCopyable, "layers of snapshotter %s cannot be read", e.cfg.Snapshotter).
			WithHint("stop the environment and take the snapshot then; only snapshotter %s has layers that can be copied", DefaultSnapshotter)
	}
	return layers(mounts)
}

// readFrozen reads layers while the container's processes are paused. They go
// on before it returns, whatever happens.
func (e *Engine) readFrozen(ctx context.Context, id string, read func() (ocispec.Descriptor, error)) (_ ocispec.Descriptor, err error) {
	copied, err := e.roots.Change(ctx, id) // they are not processes of its own
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("end copies: %w", err)
	}
	defer copied()
	frozen, err := e.paused(ctx, id)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if !frozen {
		defer func() {
			undo, cancel := afterwards(ctx)
			defer cancel()
			err = errors.Join(err, e.goOn(undo, id))
		}()
		if err := e.Pause(ctx, id); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	return read()
}

// goOn resumes a container. Nothing is worse than one that stays frozen, so it
// is tried for a while.
func (e *Engine) goOn(ctx context.Context, id string) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for try := 1; ; try++ {
		err := e.thaw(ctx, id)
		if err == nil || try == thawTries {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		}
	}
}

// hold makes a lease under a name of ours, so that what a call takes is found
// when its daemon died. release ends it, and after a failure takes back what was
// begun; it returns that failure.
func (e *Engine) hold(ctx context.Context, key string) (context.Context, func(error) error, error) {
	if err := e.abort(ctx, key); err != nil {
		return nil, nil, err
	}
	whole, done := uninterrupted(ctx)
	defer done()
	if _, err := e.client.LeasesService().Create(whole, leases.WithID(key), leases.WithExpiration(leaseTime)); err != nil {
		err = e.explain(whole, err)
		undo, cancel := afterwards(ctx)
		defer cancel()
		return nil, nil, errors.Join(fmt.Errorf("make lease: %w", err), e.abort(undo, key))
	}
	return leases.WithLease(ctx, key), func(failed error) error {
		undo, cancel := afterwards(ctx)
		defer cancel()
		if failed != nil {
			return errors.Join(failed, e.abort(undo, key))
		}
		if err := e.dropLease(undo, key); err != nil {
			e.cfg.Log.WarnContext(ctx, "a lease stays for a while", "lease", key, "error", err)
		}
		return nil
	}, nil
}

// abort removes what an interrupted copy or export has left: ingest, half a
// layer, view, lease.
func (e *Engine) abort(ctx context.Context, key string) error {
	store := e.client.ContentStore()
	statuses, err := store.ListStatuses(ctx)
	if err != nil {
		return fmt.Errorf("list ingests: %w", e.explain(ctx, err))
	}
	for _, status := range statuses {
		if status.Ref != key && !strings.HasPrefix(status.Ref, key+".") {
			continue
		}
		if err := store.Abort(ctx, status.Ref); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("abort ingest: %w", e.explain(ctx, err))
		}
	}
	for _, name := range []string{key + unpackSuffix, key + viewSuffix} {
		if err := e.snapshots.Remove(ctx, name); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove %s: %w", name, e.explain(ctx, err))
		}
	}
	return e.dropLease(ctx, key)
}

func (e *Engine) dropLease(ctx context.Context, key string) error {
	if err := e.client.LeasesService().Delete(ctx, leases.Lease{ID: key}); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete lease: %w", e.explain(ctx, err))
	} else if err == nil {
		e.collector.soon(ctx) // the copy, of which the layer was unpacked
	}
	return nil
}

// writeDiff writes layers as one uncompressed layer into the content store, to
// be unpacked then. DISK_FULL when there is no room for both: a file with holes
// may seem larger than any disk, and nobody should stay frozen until one is full.
func (e *Engine) writeDiff(ctx context.Context, key string, dirs, below []string, progress func(operation.Progress)) (ocispec.Descriptor, error) {
	size, err := measureLayer(ctx, dirs, below)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	room, err := diskspace.For(dirs[0], 2*min(size, math.MaxInt64/2))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if !room.Enough {
		return ocispec.Descriptor{}, problem.New(problem.DiskFull,
			"the files that the environment has changed are %d MiB long, their copy takes twice as much for a while, and %d MiB are free", size>>20, room.Free>>20).
			WithHint("make room; or remove long files, of which holes count, too (du --apparent-size); or stop the environment and take the snapshot then: nothing is copied in that case")
	}
	return e.writeBlob(ctx, key, ocispec.MediaTypeImageLayer, nil, func(w io.Writer) error {
		return writeLayer(ctx, &reporting{writer: w, progress: progress}, dirs, below)
	})
}

// writeBlob stores what write writes, under the lease of ctx. labels are those
// of the content.
//
// Content that is there already is not put under the lease of whoever writes it
// again: it may be collected a moment later. So that is done and looked at here.
func (e *Engine) writeBlob(ctx context.Context, ref, mediaType string, labels func() map[string]string,
	write func(io.Writer) error,
) (ocispec.Descriptor, error) {
	for range 3 {
		desc, err := e.writeBlobOnce(ctx, ref, mediaType, labels, write)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		if lease, found := leases.FromContext(ctx); found {
			resource := leases.Resource{ID: desc.Digest.String(), Type: "content"}
			if err := e.client.LeasesService().AddResource(ctx, leases.Lease{ID: lease}, resource); err != nil {
				return ocispec.Descriptor{}, fmt.Errorf("hold content: %w", e.explain(ctx, err))
			}
		}
		if _, err = e.client.ContentStore().Info(ctx, desc.Digest); err == nil {
			return desc, nil
		} else if !errdefs.IsNotFound(err) {
			return ocispec.Descriptor{}, fmt.Errorf("read content: %w", e.explain(ctx, err))
		}
	}
	return ocispec.Descriptor{}, fmt.Errorf("write content: it was collected again and again: %w", errdefs.ErrUnavailable)
}

func (e *Engine) writeBlobOnce(ctx context.Context, ref, mediaType string, labels func() map[string]string,
	write func(io.Writer) error,
) (ocispec.Descriptor, error) {
	store := e.client.ContentStore()
	writer, err := store.Writer(ctx, content.WithRef(ref))
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("begin content: %w", e.explain(ctx, err))
	}
	defer writer.Close() //nolint:errcheck // committed or not, what is left is aborted
	digester := digest.Canonical.Digester()
	// What write returns may be of what it reads as well: containerd's errors
	// are explained where they are known to be its own.
	stored := writerFunc(func(data []byte) (int, error) {
		n, err := writer.Write(data)
		if err != nil {
			return n, fmt.Errorf("write content: %w", e.explain(ctx, err))
		}
		return n, nil
	})
	counted := &counting{writer: io.MultiWriter(stored, digester.Hash())}
	buffered := bufio.NewWriterSize(counted, 1<<20)
	if err := write(buffered); err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := buffered.Flush(); err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digester.Digest(), Size: counted.count}
	var opts []content.Opt
	if labels != nil {
		opts = append(opts, content.WithLabels(labels()))
	}
	if err := writer.Commit(ctx, desc.Size, desc.Digest, opts...); err != nil && !errdefs.IsAlreadyExists(err) {
		return ocispec.Descriptor{}, fmt.Errorf("commit content: %w", e.explain(ctx, err))
	}
	return desc, nil
}

// unpackDiff makes a snapshot of a layer on top of base. root is the directory
// that the root directory of the layer is like.
func (e *Engine) unpackDiff(ctx context.Context, snapshot, base, root string, blob ocispec.Descriptor, ext extension) error {
	key := snapshotKey(snapshot)
	labels := snapshotLabels(snapshot, ext)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	whole, done := uninterrupted(ctx)
	defer done()
	mounts, err := e.snapshots.Prepare(whole, key+unpackSuffix, base, snapshots.WithLabels(map[string]string{labelSnapshot: snapshot}))
	if err != nil {
		return fmt.Errorf("prepare layer: %w", e.explain(ctx, err))
	}
	if _, err := e.client.DiffService().Apply(ctx, blob, mounts); err != nil {
		return fmt.Errorf("unpack layer: %w", e.explain(ctx, err))
	}
	dirs, err := e.overlayDirs(mounts)
	if err != nil {
		return err
	}
	if err := copyMode(root, dirs[0]); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	last, end := uninterrupted(ctx) // unpacking may have taken long
	defer end()
	if err := e.snapshots.Commit(last, key, key+unpackSuffix, snapshots.WithLabels(labels)); err != nil {
		return fmt.Errorf("commit layer: %w", e.explain(last, err))
	}
	return nil
}

// isMounted says whether a directory is the writable layer of an overlay mount
// that we or containerd see.
func (e *Engine) isMounted(ctx context.Context, upper string) (bool, error) {
	files := []string{"/proc/self/mountinfo"}
	if pid, err := e.daemon(ctx); err == nil {
		files = append(files, fmt.Sprintf("/proc/%d/mountinfo", pid))
	}
	for i, file := range files {
		table, err := os.ReadFile(file)
		if err != nil && i == 0 {
			return false, fmt.Errorf("read mounts: %w", err)
		}
		// Followed by another option or the end of the line.
		for _, end := range []string{",", "\n"} {
			if bytes.Contains(table, []byte("upperdir="+upper+end)) {
				return true, nil
			}
		}
	}
	return false, nil
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(data []byte) (int, error) { return f(data) }

type counting struct {
	writer io.Writer
	count  int64
}

func (c *counting) Write(data []byte) (int, error) {
	n, err := c.writer.Write(data)
	c.count += int64(n)
	return n, err
}

// reporting tells how many bytes were written, now and then.
type reporting struct {
	writer   io.Writer
	progress func(operation.Progress)
	count    int64
	told     time.Time
}

func (r *reporting) Write(data []byte) (int, error) {
	n, err := r.writer.Write(data)
	r.count += int64(n)
	if now := time.Now(); r.progress != nil && now.Sub(r.told) >= progressInterval {
		r.told = now
		r.progress(operation.Progress{Step: "copying", Done: r.count})
	}
	return n, err
}
