package node

import (
	"context"
	"time"

	"github.com/remotegpu/remotegpu/internal/diskspace"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/tick"
)

const (
	// leastRoom is how little room makes a disk full. What the database has
	// reserved is beside it, for operations that make room.
	leastRoom = 4 << 20
	// roomInterval is how often the reserve is looked at.
	roomInterval = time.Minute
)

// room is a DISK_FULL problem while the disk of a directory has none, nil when
// it has, or cannot be asked.
func room(dir, what string) *problem.Problem {
	if space, err := diskspace.For(dir, leastRoom); err == nil && !space.Enough {
		return problem.New(problem.DiskFull, "the disk of %s is full: of its %d MiB, less than %d can be written at %s", what, space.Size>>20, leastRoom>>20, dir).
			WithHint("stop and delete environments, images or snapshots, which goes on working, or make room otherwise; until then nothing new can be made")
	}
	return nil
}

// stateRoom is room of the disk of the database.
func (n *Node) stateRoom() *problem.Problem { return room(n.cfg.Node.StateDir, "node.state_dir") }

// mayGrow refuses what would make something new while the database could not
// keep it.
func (n *Node) mayGrow() error {
	if full := n.stateRoom(); full != nil {
		return full
	}
	return nil
}

// keepRoom has the database reserve room while there is some, and logs when the
// disk is full and when it is not any more, until ctx ends.
func (n *Node) keepRoom(ctx context.Context) error {
	var was bool
	for {
		full := n.stateRoom()
		if full == nil {
			if err := n.store.Reserve(ctx); err != nil && ctx.Err() == nil {
				n.log.WarnContext(ctx, "the database has no room reserved for when the disk is full; it is tried again", "error", err)
			}
		}
		switch {
		case full != nil && !was:
			n.log.ErrorContext(ctx, "the disk is full", "what", full.Message, "hint", full.Hint)
		case full == nil && was:
			n.log.InfoContext(ctx, "the disk has room again")
		}
		was = full != nil
		if !tick.Wait(ctx, roomInterval) {
			return context.Cause(ctx)
		}
	}
}
