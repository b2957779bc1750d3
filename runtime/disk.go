package runtime

import (
	"context"
	"fmt"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// MinDisk is the smallest limit of a writable layer in bytes: what the kernel
// and the engine themselves put there at a start takes some blocks.
const MinDisk = 1 << 20

const fieldDisk = "spec.resources.disk_bytes"

// DiskLimit is what became of Resources.DiskBytes when an environment was
// started. Zero: it was not asked for.
type DiskLimit struct {
	Bytes       int64  `json:"bytes,omitempty"`        // that are enforced; 0 when none are
	NotEnforced string `json:"not_enforced,omitempty"` // why it is not
}

// Problem says that the writable layer cannot be limited; nil when it can.
func (q *DiskQuota) Problem() *problem.Problem {
	if q.Supported {
		return nil
	}
	return problem.New(problem.DiskQuotaUnsupported, "the size of the writable layer is not enforceable here, because %s", q.Reason).
		WithField(fieldDisk).WithHint("%s; or ask for best effort (--disk-best-effort), or leave the limit out", q.Hint)
}

// checkDisk refuses a limit of the writable layer that cannot be enforced,
// unless that is good enough: then it is a warning.
func (m *Manager) checkDisk(ctx context.Context, r *Resources) (warnings []string, err error) {
	if r.DiskBytes == 0 {
		return nil, nil
	}
	_, limit, err := m.diskLimit(ctx, r)
	if err != nil || limit.NotEnforced == "" {
		return nil, err
	}
	return []string{fmt.Sprintf("the limit of %d bytes for the writable layer is not enforced, because %s", r.DiskBytes, limit.NotEnforced)}, nil
}

// diskLimit tells what the engine is to enforce, 0 for nothing. What the
// filesystem can do may have changed since the environment was made.
func (m *Manager) diskLimit(ctx context.Context, r *Resources) (bytes int64, limit DiskLimit, err error) {
	if r.DiskBytes == 0 {
		return 0, DiskLimit{}, nil
	}
	quota, err := m.cfg.Engine.DiskQuota(ctx)
	if err != nil {
		return 0, DiskLimit{}, err
	}
	switch p := quota.Problem(); {
	case p == nil:
		return r.DiskBytes, DiskLimit{Bytes: r.DiskBytes}, nil
	case r.DiskBestEffort:
		return 0, DiskLimit{NotEnforced: quota.Reason}, nil
	default:
		return 0, DiskLimit{}, p
	}
}
