package store

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/sqlite"
	"github.com/remotegpu/remotegpu/runtime"
)

const (
	leaseColumns = `id, env_id, gpu, mode, profile, place_start, place_size, static, memory_bytes, compute_percent,
	enforcement, created_at, released_at`
	// The name of an environment is that of its row, while it has one.
	selectLeases = `SELECT l.seq, l.id, l.env_id, l.gpu, l.mode, l.profile, l.place_start, l.place_size, l.static, l.memory_bytes,
	l.compute_percent, l.enforcement, l.created_at, l.released_at, coalesce(e.name, l.env_name), e.id IS NULL OR e.state = 'deleted'
	FROM gpu_leases l LEFT JOIN environments e ON e.id = l.env_id WHERE `
	selectMarks = "SELECT gpu, drained, why, drained_at, unhealthy, reason, xid, since, uncorrected, revision FROM gpu_marks"
)

// leasesOrder puts leases that are held in order. The plus has SQLite sort those few,
// and not go through all that ever were for their order.
const leasesOrder = " ORDER BY +l.seq"

func queryLeases(ctx context.Context, tx *sql.Tx, where string, args ...any) ([]gpu.Lease, error) {
	rows, err := tx.QueryContext(ctx, selectLeases+where+leasesOrder, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells what went wrong
	var found []gpu.Lease
	for rows.Next() {
		l, _, err := scanLease(rows)
		if err != nil {
			return nil, err
		}
		found = append(found, l)
	}
	return found, rows.Err()
}

// scanLease reads a row of selectLeases, and its place in the order of creation.
func scanLease(rows *sql.Rows) (l gpu.Lease, seq int64, err error) {
	var memory, created, released int64
	if err := rows.Scan(&seq, &l.ID, &l.EnvID, &l.GPU, &l.Mode, &l.Profile, &l.Placement.Start, &l.Placement.Size, &l.Static, &memory,
		&l.ComputePercent, &l.Enforcement, &created, &released, &l.EnvName, &l.EnvDeleted); err != nil {
		return l, 0, err
	}
	l.MemoryBytes = uint64(max(memory, 0))
	l.CreatedAt, l.ReleasedAt = fromMillis(created), fromMillis(released)
	return l, seq, nil
}

func queryMarks(ctx context.Context, tx *sql.Tx, where string, args ...any) ([]gpu.Mark, error) {
	rows, err := tx.QueryContext(ctx, selectMarks+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells what went wrong
	var found []gpu.Mark
	for rows.Next() {
		var (
			m              gpu.Mark
			drained, since int64
			uncorrected    sql.NullInt64
		)
		if err := rows.Scan(&m.GPU, &m.Drained, &m.Why, &drained, &m.Health.Unhealthy, &m.Health.Reason, &m.Health.XID, &since, &uncorrected, &m.Revision); err != nil {
			return nil, err
		}
		m.DrainedAt, m.Health.Since = fromMillis(drained), fromMillis(since)
		m.Uncorrected, m.Counted = uint64(uncorrected.Int64), uncorrected.Valid
		found = append(found, m)
	}
	return found, rows.Err()
}

func heldLeases(ctx context.Context, tx *sql.Tx, envID string) ([]gpu.Lease, error) {
	return queryLeases(ctx, tx, "l.env_id = ? AND l.released_at = 0", envID)
}

// gpuBooks are the books as they are inside a transaction.
func gpuBooks(ctx context.Context, tx *sql.Tx) (books gpu.Books, err error) {
	if books.Held, err = queryLeases(ctx, tx, "l.released_at = 0"); err != nil {
		return books, err
	}
	if books.Marks, err = queryMarks(ctx, tx, " ORDER BY gpu"); err != nil {
		return books, err
	}
	if books.Planned, err = queryPlanned(ctx, tx); err != nil {
		return books, err
	}
	books.MIG, err = queryMIG(ctx, tx)
	return books, err
}

// GPUBooks implements runtime.GPUStore.
func (s *Store) GPUBooks(ctx context.Context) (books gpu.Books, err error) {
	err = s.db.Read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		books, err = gpuBooks(ctx, tx)
		return err
	})
	if err != nil {
		return books, fmt.Errorf("read GPU leases: %w", err)
	}
	return books, nil
}

// lease has decide change the leases of an environment, by what is held and
// marked inside the transaction.
func lease(ctx context.Context, tx *sql.Tx, env *runtime.Environment, decide runtime.LeaseFunc, at time.Time) error {
	if decide == nil {
		return nil
	}
	books, err := gpuBooks(ctx, tx)
	if err != nil {
		return err
	}
	change, err := decide(books)
	if err != nil {
		return err
	}
	for i := range change.Drop {
		if err := leaveInstances(ctx, tx, at, env.ID, change.Drop[i].ID); err != nil {
			return err
		}
		// What has ended meanwhile has ended.
		if _, err := tx.ExecContext(ctx, endLease+" WHERE id = ? AND env_id = ? AND released_at = 0",
			millis(at), change.Drop[i].ID, env.ID); err != nil {
			return err
		}
	}
	for i := range change.Add {
		l := &change.Add[i]
		l.EnvID = env.ID
		memory := int64(min(l.MemoryBytes, 1<<62))
		if _, err := tx.ExecContext(ctx, "INSERT INTO gpu_leases ("+leaseColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
			l.ID, l.EnvID, l.GPU, l.Mode, l.Profile, l.Placement.Start, l.Placement.Size, l.Static, memory, l.ComputePercent,
			l.Enforcement, millis(at)); err != nil {
			if sqlite.IsConstraint(err) {
				return problem.New(problem.GPUExhausted, "GPU %s cannot be given as %s beside what is given of it", l.GPU, l.Mode).
					WithField("spec.gpu").WithHint("try again; if that does not help, report it: the allocator and the database differ").WithCause(err)
			}
			return err
		}
	}
	env.GPUs, err = heldLeases(ctx, tx, env.ID)
	return err
}

// An ended lease outlives the row of its environment, so it keeps the name.
const endLease = `UPDATE gpu_leases SET released_at = max(?, 1),
	env_name = coalesce((SELECT name FROM environments WHERE id = gpu_leases.env_id), env_name)`

// releaseLeases ends the leases of an environment.
func releaseLeases(ctx context.Context, tx *sql.Tx, envID string, at time.Time) error {
	if err := leaveInstances(ctx, tx, at, envID, ""); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, endLease+" WHERE env_id = ? AND released_at = 0", millis(at), envID)
	return err
}

// ChangeGPUs implements runtime.GPUStore.
func (s *Store) ChangeGPUs(ctx context.Context, id string, decide runtime.LeaseFunc, change func(*runtime.Environment) error) (
	*runtime.Environment, error,
) {
	before := func(ctx context.Context, tx *sql.Tx) (bool, error) {
		return true, lease(ctx, tx, &runtime.Environment{ID: id}, decide, s.now())
	}
	return s.changeEnvironment(ctx, id, before, change, func(context.Context, *sql.Tx, *runtime.Environment, time.Time) error { return nil })
}

// MarkGPU implements runtime.GPUStore.
func (s *Store) MarkGPU(ctx context.Context, uuid string, change func(books gpu.Books, mark *gpu.Mark) error) (mark gpu.Mark, err error) {
	var changeErr error
	err = s.db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		books, err := gpuBooks(ctx, tx)
		if err != nil {
			return err
		}
		mark = books.Mark(uuid)
		before := mark
		if changeErr = change(books, &mark); changeErr != nil {
			return changeErr
		}
		if mark == before {
			return nil
		}
		mark.Revision++
		mark.DrainedAt, mark.Health.Since = stored(mark.DrainedAt), stored(mark.Health.Since)
		uncorrected := sql.NullInt64{Int64: int64(min(mark.Uncorrected, math.MaxInt64)), Valid: mark.Counted}
		_, err = tx.ExecContext(ctx, `INSERT INTO gpu_marks (gpu, drained, why, drained_at, unhealthy, reason, xid, since, uncorrected, revision)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (gpu) DO UPDATE SET drained = excluded.drained, why = excluded.why, drained_at = excluded.drained_at,
			unhealthy = excluded.unhealthy, reason = excluded.reason, xid = excluded.xid, since = excluded.since,
			uncorrected = excluded.uncorrected, revision = excluded.revision`,
			uuid, mark.Drained, mark.Why, millis(mark.DrainedAt), mark.Health.Unhealthy, mark.Health.Reason, mark.Health.XID,
			millis(mark.Health.Since), uncorrected, mark.Revision)
		return err
	})
	if changeErr != nil {
		return gpu.Mark{}, changeErr
	}
	if err != nil {
		return gpu.Mark{}, fmt.Errorf("mark GPU %s: %w", uuid, err)
	}
	return mark, nil
}
