package runtime

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// sweepTime is how long a pass removes files of deleted volumes: others wait for
// it, and the next one goes on.
const sweepTime = 10 * time.Second

// observeVolumes lists what is left of volumes that were deleted, and that nobody
// removes now.
func (m *Manager) observeVolumes(ctx context.Context, o *observed) error {
	if m.cfg.NamedVolumes == nil {
		return nil
	}
	left, err := m.cfg.NamedVolumes.Deleted(ctx)
	for _, path := range left {
		o.parts = append(o.parts, Part{Kind: FoundVolume, Name: path})
	}
	return err
}

// removeDeletedVolumes removes what was found of deleted volumes, as far as it
// gets.
func (m *Manager) removeDeletedVolumes(ctx context.Context, findings []Finding) {
	if !settled(findings, stepVolumes) {
		return
	}
	sweeping, cancel := context.WithTimeout(ctx, sweepTime)
	defer cancel()
	err := m.cfg.NamedVolumes.RemoveDeleted(sweeping)
	if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		err = problem.New(problem.Unavailable, "it has very many files").WithHint("wait: each pass removes more of them")
	}
	left, listing := m.cfg.NamedVolumes.Deleted(ctx)
	for i := range findings {
		f := &findings[i]
		switch {
		case f.step != stepVolumes:
		case listing != nil:
			f.settle(listing)
		case slices.Contains(left, f.Name):
			f.settle(err)
		default:
			f.settle(nil)
		}
	}
}
