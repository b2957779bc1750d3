package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

const environmentColumns = `id, project, name, node, labels, revision, spec, state, held, slot, address, ready,
	operation, detail, created_at, updated_at, started_at`

const (
	environmentPlaceholders = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
	insertEnvironmentRow    = "INSERT INTO environments (" + environmentColumns + ") VALUES " + environmentPlaceholders
	updateEnvironmentRow    = "UPDATE environments SET (" + environmentColumns + ") = " + environmentPlaceholders +
		" WHERE seq = ?"
)

// environmentDetail is what nothing selects by.
type environmentDetail struct {
	Problem  *operation.Problem `json:"problem,omitempty"`
	Exit     *runtime.Exit      `json:"exit,omitempty"`
	Digest   string             `json:"digest,omitempty"`
	Login    string             `json:"login,omitempty"`
	Warnings []string           `json:"warnings,omitempty"`

	Health       runtime.Health    `json:"health,omitempty"`
	HealthDetail string            `json:"health_detail,omitempty"`
	RestartCount int               `json:"restart_count,omitempty"`
	RestartAt    int64             `json:"restart_at,omitempty"` // milliseconds since 1970 UTC
	ByPolicy     bool              `json:"by_policy,omitempty"`
	Paused       bool              `json:"paused,omitempty"`
	RolledBack   string            `json:"rolled_back,omitempty"`
	OOMKills     int               `json:"oom_kills,omitempty"`
	Applied      *runtime.Spec     `json:"applied,omitempty"`
	Clear        bool              `json:"clear,omitempty"`
	Disk         runtime.DiskLimit `json:"disk,omitzero"`
	GPURun       *runtime.GPURun   `json:"gpu_run,omitempty"`
}

// environmentRow is a row as it was read, decoded only as far as needed.
type environmentRow struct {
	env                       runtime.Environment
	seq                       int64
	labels, spec, detail      string
	slot                      sql.Null[int]
	address                   string
	created, updated, started int64
}

func (r *environmentRow) scan(row scanner) error {
	e := &r.env
	return row.Scan(&e.ID, &e.Project, &e.Name, &e.Node, &r.labels, &e.Revision, &r.spec, &e.State, &e.Held, &r.slot,
		&r.address, &e.Ready, &e.Operation, &r.detail, &r.created, &r.updated, &r.started, &r.seq)
}

func (r *environmentRow) decode() (*runtime.Environment, error) {
	e := &r.env
	if err := fromJSON(r.labels, &e.Labels); err != nil {
		return nil, err
	}
	if err := fromJSON(r.spec, &e.Spec); err != nil {
		return nil, err
	}
	var d environmentDetail
	if err := fromJSON(r.detail, &d); err != nil {
		return nil, err
	}
	e.Problem, e.Exit, e.Digest, e.Login, e.Warnings = d.Problem, d.Exit, d.Digest, d.Login, d.Warnings
	e.Health, e.HealthDetail = d.Health, d.HealthDetail
	e.RestartCount, e.RestartAt, e.ByPolicy = d.RestartCount, fromMillis(d.RestartAt), d.ByPolicy
	e.Paused, e.Applied, e.Clear = d.Paused, d.Applied, d.Clear
	e.RolledBack, e.OOMKills = d.RolledBack, d.OOMKills
	e.Disk, e.GPURun = d.Disk, d.GPURun
	e.Slot = -1
	if r.slot.Valid {
		e.Slot = r.slot.V
	}
	if r.address != "" {
		address, err := netip.ParseAddr(r.address)
		if err != nil {
			return nil, problem.New(problem.DatabaseFailed, "the address of environment %s cannot be read", e.ID).WithCause(err)
		}
		e.Address = address
	}
	e.CreatedAt, e.UpdatedAt, e.StartedAt = fromMillis(r.created), fromMillis(r.updated), fromMillis(r.started)
	return e, nil
}

// environmentValues are the columns of environmentColumns.
func environmentValues(e *runtime.Environment) ([]any, error) {
	labels, err := toJSON(e.Labels)
	if err != nil {
		return nil, err
	}
	spec, err := toJSON(e.Spec)
	if err != nil {
		return nil, err
	}
	detail, err := toJSON(environmentDetail{
		Problem: e.Problem, Exit: e.Exit, Digest: e.Digest, Login: e.Login, Warnings: e.Warnings, Health: e.Health, HealthDetail: e.HealthDetail,
		RestartCount: e.RestartCount, RestartAt: millis(e.RestartAt), ByPolicy: e.ByPolicy, Paused: e.Paused, Applied: e.Applied,
		Clear: e.Clear, RolledBack: e.RolledBack, OOMKills: e.OOMKills, Disk: e.Disk, GPURun: e.GPURun,
	})
	if err != nil {
		return nil, err
	}
	address := ""
	if e.Address.IsValid() {
		address = e.Address.String()
	}
	return []any{
		e.ID, e.Project, e.Name, e.Node, labels, e.Revision, spec, e.State, e.Held,
		sql.Null[int]{V: e.Slot, Valid: e.Slot >= 0},
		address, e.Ready, e.Operation, detail,
		millis(e.CreatedAt), millis(e.UpdatedAt), millis(e.StartedAt),
	}, nil
}

func readEnvironment(ctx context.Context, tx *sql.Tx, where string, args ...any) (*runtime.Environment, int64, error) {
	var row environmentRow
	if err := row.scan(tx.QueryRowContext(ctx, "SELECT "+environmentColumns+
		", seq FROM environments WHERE state != 'deleted' AND "+where, args...)); err != nil {
		return nil, 0, err
	}
	env, err := row.decode()
	if err != nil {
		return nil, 0, err
	}
	if env.Ports, err = heldMappings(ctx, tx, env.ID); err != nil {
		return nil, 0, err
	}
	env.GPUs, err = heldLeases(ctx, tx, env.ID)
	return env, row.seq, err
}

const selectHeld = "SELECT " + mappingColumns + ` FROM port_mappings
	WHERE env_id = ? AND status IN ('reserved', 'active') ORDER BY seq`

func heldMappings(ctx context.Context, tx *sql.Tx, envID string) ([]port.Mapping, error) {
	return queryMappings(ctx, tx, selectHeld, envID)
}

func environmentNotFound(err error, name string) error {
	if errors.Is(err, sql.ErrNoRows) {
		return problem.New(problem.EnvNotFound, "environment %q does not exist", name).
			WithHint("list the environments there are")
	}
	return err
}

// Environment implements runtime.Store.
func (s *Store) Environment(ctx context.Context, id string) (env *runtime.Environment, err error) {
	err = s.db.Read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		env, _, err = readEnvironment(ctx, tx, "id = ?", id)
		return environmentNotFound(err, id)
	})
	if err != nil {
		return nil, fmt.Errorf("read environment %s: %w", id, err)
	}
	return env, nil
}

// EnvironmentByName implements runtime.Store.
func (s *Store) EnvironmentByName(ctx context.Context, project, name string) (env *runtime.Environment, err error) {
	err = s.db.Read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		env, _, err = readEnvironment(ctx, tx, "project = ? AND name = ?", project, name)
		return environmentNotFound(err, name)
	})
	if err != nil {
		return nil, fmt.Errorf("read environment %s of project %s: %w", name, project, err)
	}
	return env, nil
}

// CountEnvironments implements runtime.Store.
func (s *Store) CountEnvironments(ctx context.Context) (map[runtime.State]int, error) {
	counts := make(map[runtime.State]int)
	err := s.db.Read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx,
			"SELECT state, count(*) FROM environments WHERE state != 'deleted' GROUP BY state")
		if err != nil {
			return err
		}
		defer rows.Close() //nolint:errcheck // rows.Err tells what went wrong
		for rows.Next() {
			var (
				state runtime.State
				count int
			)
			if err := rows.Scan(&state, &count); err != nil {
				return err
			}
			counts[state] = count
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("count environments: %w", err)
	}
	return counts, nil
}

// Fate implements runtime.Store.
func (s *Store) Fate(ctx context.Context, id string) (runtime.Fate, error) {
	fate := runtime.FateUnknown
	err := s.db.Read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		var (
			state runtime.State
			held  bool
		)
		err := tx.QueryRowContext(ctx, "SELECT state, held FROM environments WHERE id = ?", id).Scan(&state, &held)
		switch {
		case err != nil:
			return ignoreNoRows(err)
		case held && state != runtime.Deleted:
			fate = runtime.FateHeld
		default:
			fate = runtime.FateGone
		}
		return nil
	})
	if err != nil {
		return fate, fmt.Errorf("read fate of environment %s: %w", id, err)
	}
	return fate, nil
}

// keepPortHistory is for how many years a released mapping or lease tells who had
// a host port or a GPU, after the time that deleted environments are kept.
const keepPortHistory = 1

// What is kept for a time only, and goes then.
const (
	forgotten = `SELECT id FROM environments WHERE state = 'deleted' AND updated_at < ?1
		AND NOT EXISTS (SELECT 1 FROM port_mappings WHERE env_id = environments.id
			AND status IN ('reserved', 'active'))`
	purgeMappings     = "DELETE FROM port_mappings WHERE status = 'released' AND released_at < ?"
	purgeLeases       = "DELETE FROM gpu_leases WHERE released_at != 0 AND released_at < ?"
	purgeEvents       = "DELETE FROM environment_events WHERE env_id IN (" + forgotten + ")"
	purgeEnvironments = "DELETE FROM environments WHERE id IN (" + forgotten + ")"
	purgeOperations   = "DELETE FROM operations WHERE finished_at != 0 AND finished_at < ?"
)

// PurgeDeleted implements runtime.Store. An environment that still holds a
// mapping stays; released ones outlive what they were for.
func (s *Store) PurgeDeleted(ctx context.Context, before time.Time) (int, error) {
	var purged int64
	err := s.db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		history := millis(before.AddDate(-keepPortHistory, 0, 0))
		if _, err := tx.ExecContext(ctx, purgeMappings, history); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, purgeLeases, history); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, purgeEvents, millis(before)); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, keepSnapshotNames, millis(before)); err != nil {
			return err
		}
		result, err := tx.ExecContext(ctx, purgeEnvironments, millis(before))
		if err != nil {
			return err
		}
		purged, err = result.RowsAffected()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("purge deleted environments: %w", err)
	}
	return int(purged), nil
}
