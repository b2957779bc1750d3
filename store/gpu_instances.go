package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/sqlite"
)

func queryPlanned(ctx context.Context, tx *sql.Tx) ([]gpu.Planned, error) {
	rows, err := tx.QueryContext(ctx, `SELECT i.gpu, i.profile, i.place_start, i.place_size, i.remove, i.env_id, coalesce(e.name, ''), i.created_at
		FROM gpu_instances i LEFT JOIN environments e ON e.id = i.env_id ORDER BY i.gpu, i.place_start, i.place_size, i.profile`)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells what went wrong
	var found []gpu.Planned
	for rows.Next() {
		var (
			p       gpu.Planned
			created int64
		)
		if err := rows.Scan(&p.GPU, &p.Profile, &p.Placement.Start, &p.Placement.Size, &p.Remove, &p.EnvID, &p.EnvName, &created); err != nil {
			return nil, err
		}
		p.CreatedAt = fromMillis(created)
		found = append(found, p)
	}
	return found, rows.Err()
}

func queryMIG(ctx context.Context, tx *sql.Tx) ([]string, error) {
	rows, err := tx.QueryContext(ctx, "SELECT gpu FROM gpu_mig ORDER BY gpu")
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells what went wrong
	var found []string
	for rows.Next() {
		var uuid string
		if err := rows.Scan(&uuid); err != nil {
			return nil, err
		}
		found = append(found, uuid)
	}
	return found, rows.Err()
}

// leaveInstances keeps that the instances that were made for an environment's
// leases, or for one of them, are to be removed. These end in the same
// transaction.
func leaveInstances(ctx context.Context, tx *sql.Tx, at time.Time, envID, leaseID string) error {
	_, err := tx.ExecContext(ctx, `INSERT OR IGNORE INTO gpu_instances (gpu, profile, place_start, place_size, remove, env_id, created_at)
		SELECT gpu, profile, place_start, place_size, 1, env_id, ? FROM gpu_leases
		WHERE released_at = 0 AND mode = 'mig' AND static = 0 AND env_id = ? AND (? = '' OR id = ?)`, millis(at), envID, leaseID, leaseID)
	return err
}

// PlanInstance implements runtime.GPUStore.
func (s *Store) PlanInstance(ctx context.Context, p gpu.Planned) error {
	err := s.db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO gpu_instances (gpu, profile, place_start, place_size, remove, env_id, created_at)
			VALUES (?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (gpu, place_start, place_size, profile) DO UPDATE SET remove = excluded.remove, env_id = excluded.env_id`,
			p.GPU, p.Profile, p.Placement.Start, p.Placement.Size, p.Remove, p.EnvID, millis(p.CreatedAt))
		return err
	})
	switch {
	case sqlite.IsConstraint(err):
		return problem.New(problem.GPUPlacementTaken, "another instance is to be at %d of GPU %s", p.Placement.Start, p.GPU).
			WithHint("see what is free: remotegpu gpu get %s", p.GPU).WithCause(err)
	case err != nil:
		return fmt.Errorf("plan instance %s of GPU %s: %w", p.Profile, p.GPU, err)
	}
	return nil
}

// ForgetInstance implements runtime.GPUStore.
func (s *Store) ForgetInstance(ctx context.Context, p gpu.Planned) error {
	if err := s.db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM gpu_instances WHERE gpu = ? AND place_start = ? AND place_size = ? AND profile = ? AND remove = ?",
			p.GPU, p.Placement.Start, p.Placement.Size, p.Profile, p.Remove)
		return err
	}); err != nil {
		return fmt.Errorf("forget instance %s of GPU %s: %w", p.Profile, p.GPU, err)
	}
	return nil
}

// PlanMIG implements runtime.GPUStore.
func (s *Store) PlanMIG(ctx context.Context, uuid string, on bool) error {
	if err := s.db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if on {
			_, err := tx.ExecContext(ctx, "INSERT OR IGNORE INTO gpu_mig (gpu) VALUES (?)", uuid)
			return err
		}
		_, err := tx.ExecContext(ctx, "DELETE FROM gpu_mig WHERE gpu = ?", uuid)
		return err
	}); err != nil {
		return fmt.Errorf("keep the MIG mode of GPU %s: %w", uuid, err)
	}
	return nil
}
