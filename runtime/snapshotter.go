package runtime

import (
	"context"
	"encoding/json"
	"time"

	"github.com/remotegpu/remotegpu/runtime/operation"
)

// Snapshotter keeps writable layers of containers as snapshots, known by the
// ids that the caller gives them; runtime/containerd implements it. Errors are
// errdefs kinds or *problem.Problem. Every method that removes treats what is
// absent as removed.
type Snapshotter interface {
	// CommitLayer makes the writable layer of a container whose process does
	// not run a snapshot, and puts an empty one on top of it. Nothing
	// interrupts it once it has begun; called again it finishes what a daemon
	// that died has begun. NotFound; FailedPrecondition while it runs or its
	// layer is mounted; SNAPSHOT_TOO_DEEP, SNAPSHOT_NOT_COPYABLE.
	CommitLayer(ctx context.Context, id, snapshot string) (Layer, error)
	// CopyLayer makes a copy of the writable layer of a running container a
	// snapshot. Its processes are paused while the layer is read, unless they
	// are paused already, and go on before the call returns; a daemon that dies
	// leaves them paused. On error nothing is left. NotFound when it does not run; SNAPSHOT_TOO_DEEP,
	// SNAPSHOT_NOT_COPYABLE. progress gets bytes.
	CopyLayer(ctx context.Context, id, snapshot string, progress func(operation.Progress)) (Layer, error)
	// ResetLayer replaces the writable layer of a container whose process does
	// not run by an empty one on top of a snapshot. Called again it does so
	// again. NotFound; SNAPSHOT_NOT_FOUND with nothing changed;
	// FailedPrecondition while it runs or its layer is mounted.
	ResetLayer(ctx context.Context, id, snapshot string) error
	// RemoveSnapshot removes a snapshot and all that an interrupted call has
	// left of one. What builds on it keeps its files as long as it needs them.
	RemoveSnapshot(ctx context.Context, snapshot string) error
	// Snapshots lists the snapshots that were not removed, and what is being
	// made, or was left by a daemon that died.
	Snapshots(ctx context.Context) ([]SnapshotPart, error)
	// ExportSnapshot makes an image of a snapshot. On error nothing is left.
	// SNAPSHOT_NOT_FOUND, SNAPSHOT_BASE_MISSING, SNAPSHOT_NOT_COPYABLE.
	// progress gets layers.
	ExportSnapshot(ctx context.Context, e Export, progress func(operation.Progress)) (Image, error)
	// TidySnapshot removes what interrupted calls have left beside a snapshot.
	TidySnapshot(ctx context.Context, snapshot string) error
}

// Layer is a snapshot as the engine knows it.
type Layer struct {
	Parent      string // id of the snapshot that it builds on; "": the image
	Size        int64  // bytes of its own files
	Image       string // full reference that the container was made from
	ImageDigest string
	ImageLabels map[string]string
	// Base is what the engine has to know of the image to make containers and
	// images of the snapshot when the image is gone. Only the engine reads it.
	Base json.RawMessage
}

// SnapshotPart is what an engine has of a snapshot.
type SnapshotPart struct {
	ID    string
	Whole bool // it is there
	Begun bool // something is being made of or for it, or was when a daemon died
}

// Export is an image to make of a snapshot.
type Export struct {
	Snapshot  string
	Reference string // full reference of the image
	Base      json.RawMessage
	Comment   string // for the history of the image
	Created   time.Time
}
