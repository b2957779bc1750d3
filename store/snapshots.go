package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/sqlite"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// What a snapshot's environment is called is in its row, while it has one.
const (
	snapshotEnvName = `coalesce((SELECT e.name FROM environments e WHERE e.id = snapshots.env_id), detail ->> '$.env_name')`
	snapshotEnvGone = `NOT EXISTS (SELECT 1 FROM environments e WHERE e.id = snapshots.env_id AND e.state != 'deleted')`
	selectSnapshots = "SELECT " + snapshotColumns + ", seq, " + snapshotEnvName + ", " + snapshotEnvGone + " FROM snapshots WHERE "
	// keepSnapshotNames writes down names whose rows are about to go.
	keepSnapshotNames = "UPDATE snapshots SET detail = json_set(detail, '$.env_name', " + snapshotEnvName + ") WHERE env_id IN (" + forgotten + ")"
)

const snapshotColumns = `id, project, env_id, name, node, labels, revision, state, operation, spec, detail, created_at`

const (
	snapshotPlaceholders = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
	insertSnapshotRow    = "INSERT INTO snapshots (" + snapshotColumns + ") VALUES " + snapshotPlaceholders
	updateSnapshotRow    = "UPDATE snapshots SET (" + snapshotColumns + ") = " + snapshotPlaceholders + " WHERE seq = ?"
)

// snapshotDetail is what nothing selects by.
type snapshotDetail struct {
	EnvName string                 `json:"env_name"`
	Method  runtime.SnapshotMethod `json:"method,omitempty"`
	Freezes bool                   `json:"freezes,omitempty"`
	Layer   runtime.Layer          `json:"layer"`
}

func scanSnapshot(row scanner) (*runtime.Snapshot, int64, error) {
	var (
		s                    runtime.Snapshot
		labels, spec, detail string
		created, seq         int64
	)
	if err := row.Scan(&s.ID, &s.Project, &s.EnvID, &s.Name, &s.Node, &labels, &s.Revision, &s.State, &s.Operation,
		&spec, &detail, &created, &seq, &s.EnvName, &s.EnvDeleted); err != nil {
		return nil, 0, err
	}
	var d snapshotDetail
	if err := errors.Join(fromJSON(labels, &s.Labels), fromJSON(spec, &s.Spec), fromJSON(detail, &d)); err != nil {
		return nil, 0, err
	}
	s.Method, s.Freezes, s.Layer, s.CreatedAt = d.Method, d.Freezes, d.Layer, fromMillis(created)
	return &s, seq, nil
}

// snapshotValues are the columns of snapshotColumns.
func snapshotValues(s *runtime.Snapshot) ([]any, error) {
	labels, err1 := toJSON(s.Labels)
	spec, err2 := toJSON(s.Spec)
	detail, err3 := toJSON(snapshotDetail{s.EnvName, s.Method, s.Freezes, s.Layer})
	return []any{
		s.ID, s.Project, s.EnvID, s.Name, s.Node, labels, s.Revision, s.State, s.Operation, spec, detail, millis(s.CreatedAt),
	}, errors.Join(err1, err2, err3)
}

func readSnapshot(ctx context.Context, tx *sql.Tx, what, where string, args ...any) (*runtime.Snapshot, int64, error) {
	s, seq, err := scanSnapshot(tx.QueryRowContext(ctx, selectSnapshots+where, args...))
	if errors.Is(err, sql.ErrNoRows) {
		err = problem.New(problem.SnapshotNotFound, "snapshot %q does not exist", what).WithHint("list the snapshots there are")
	}
	return s, seq, err
}

// CreateSnapshot implements runtime.Store.
func (s *Store) CreateSnapshot(ctx context.Context, snapshot *runtime.Snapshot, op *operation.Operation,
	change func(*runtime.Environment) error,
) (env *runtime.Environment, existing *operation.Operation, err error) {
	before := func(ctx context.Context, tx *sql.Tx) (bool, error) {
		existing, err = knownRequest(ctx, tx, op)
		return existing == nil, err
	}
	var row runtime.Snapshot
	after := func(ctx context.Context, tx *sql.Tx, _ *runtime.Environment, _ time.Time) error {
		row = *snapshot // as change has completed it
		row.Revision, row.CreatedAt = 1, stored(row.CreatedAt)
		values, err := snapshotValues(&row)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, insertSnapshotRow, values...)
		if sqlite.IsUnique(err) {
			return problem.New(problem.SnapshotNameExists, "the environment has a snapshot %q", row.Name).WithField("name").
				WithHint("choose another name, or delete that snapshot first")
		}
		if err != nil {
			return err
		}
		return s.insertOperation(ctx, tx, op)
	}
	env, err = s.changeEnvironment(ctx, snapshot.EnvID, before, change, after)
	if err != nil {
		return nil, nil, err
	}
	if existing == nil {
		*snapshot = row // only now, that it is stored
	}
	return env, existing, nil
}

// Snapshot implements runtime.Store.
func (s *Store) Snapshot(ctx context.Context, id string) (snapshot *runtime.Snapshot, err error) {
	err = s.db.Read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		snapshot, _, err = readSnapshot(ctx, tx, id, "id = ?", id)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read snapshot %s: %w", id, err)
	}
	return snapshot, nil
}

// SnapshotByName implements runtime.Store.
func (s *Store) SnapshotByName(ctx context.Context, envID, name string) (snapshot *runtime.Snapshot, err error) {
	err = s.db.Read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		snapshot, _, err = readSnapshot(ctx, tx, name, "env_id = ? AND name = ?", envID, name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read snapshot %s of environment %s: %w", name, envID, err)
	}
	return snapshot, nil
}

// Snapshots implements runtime.Store.
func (s *Store) Snapshots(ctx context.Context, filter runtime.SnapshotFilter) (found []*runtime.Snapshot, next string, err error) {
	where, args := []string{"1"}, []any(nil)
	for column, value := range map[string]string{
		"project": filter.Project, "env_id": filter.EnvID, "name": filter.Name, "operation": filter.Operation, snapshotEnvName: filter.GoneEnv,
	} {
		if value != "" {
			where, args = append(where, column+" = ?"), append(args, value)
		}
	}
	if filter.GoneEnv != "" {
		where = append(where, snapshotEnvGone)
	}
	if filter.After != "" {
		var seq int64
		if err := parseCursor(filter.After, "s", &seq); err != nil {
			return nil, "", err
		}
		where, args = append(where, "seq > ?"), append(args, seq)
	}
	query := selectSnapshots + strings.Join(where, " AND ") + " ORDER BY seq" //nolint:gosec // only names of columns are put together
	err = s.db.Read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, query, args...)
		if err != nil {
			return err
		}
		defer rows.Close() //nolint:errcheck // rows.Err tells what went wrong
		var last int64
		for rows.Next() {
			snapshot, seq, err := scanSnapshot(rows)
			if err != nil {
				return err
			}
			if !filter.Labels.Matches(snapshot.Labels) {
				continue
			}
			if filter.Limit > 0 && len(found) == filter.Limit {
				next = cursor("s", last)
				return nil
			}
			found, last = append(found, snapshot), seq
		}
		return rows.Err()
	})
	if err != nil {
		return nil, "", fmt.Errorf("list snapshots: %w", err)
	}
	return found, next, nil
}

// UpdateSnapshot implements runtime.Store. With a known request id it returns
// the operation alone.
func (s *Store) UpdateSnapshot(ctx context.Context, id string, op *operation.Operation, change func(*runtime.Snapshot) error) (
	snapshot *runtime.Snapshot, existing *operation.Operation, err error,
) {
	var changeErr error
	err = s.db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if existing, err = knownRequest(ctx, tx, op); existing != nil || err != nil {
			return err
		}
		var seq int64
		if snapshot, seq, err = readSnapshot(ctx, tx, id, "id = ?", id); err != nil {
			return err
		}
		if changeErr = change(snapshot); changeErr != nil {
			return changeErr
		}
		if err := writeSnapshot(ctx, tx, snapshot, seq); err != nil || op == nil {
			return err
		}
		return s.insertOperation(ctx, tx, op)
	})
	if changeErr != nil {
		return nil, nil, changeErr
	}
	if err != nil {
		return nil, nil, fmt.Errorf("update snapshot %s: %w", id, err)
	}
	return snapshot, existing, nil
}

// selectSnapshotUses finds the operations that are not done and need a snapshot:
// what an environment is made of is in its spec, what it is rolled back to in the
// arguments.
const selectSnapshotUses = `SELECT e.name, o.id, o.kind FROM operations o JOIN environments e ON e.id = o.target
	WHERE o.state IN ('queued', 'running')
		AND (o.kind = '` + runtime.KindCreate + `' AND e.spec ->> '$.snapshot' = ?1 OR o.kind = '` + runtime.KindRollBack + `' AND o.args ->> '$.snapshot' = ?1)
	ORDER BY o.seq`

// DiscardSnapshot implements runtime.Store.
func (s *Store) DiscardSnapshot(ctx context.Context, id string, check func(*runtime.Snapshot, []runtime.SnapshotUse) error) error {
	var checkErr error
	err := s.db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		snapshot, seq, err := readSnapshot(ctx, tx, id, "id = ?", id)
		if err != nil {
			return err
		}
		uses, err := snapshotUses(ctx, tx, id)
		if err != nil {
			return err
		}
		if checkErr = check(snapshot, uses); checkErr != nil {
			return checkErr
		}
		snapshot.State = runtime.SnapshotDeleting
		return writeSnapshot(ctx, tx, snapshot, seq)
	})
	if checkErr != nil {
		return checkErr
	}
	if err != nil {
		return fmt.Errorf("discard snapshot %s: %w", id, err)
	}
	return nil
}

func snapshotUses(ctx context.Context, tx *sql.Tx, id string) (uses []runtime.SnapshotUse, err error) {
	rows, err := tx.QueryContext(ctx, selectSnapshotUses, id)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells what went wrong
	for rows.Next() {
		var use runtime.SnapshotUse
		if err := rows.Scan(&use.Environment, &use.Operation, &use.Kind); err != nil {
			return nil, err
		}
		uses = append(uses, use)
	}
	return uses, rows.Err()
}

// writeSnapshot writes a change of a snapshot and counts it.
func writeSnapshot(ctx context.Context, tx *sql.Tx, snapshot *runtime.Snapshot, seq int64) error {
	snapshot.Revision++
	values, err := snapshotValues(snapshot)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, updateSnapshotRow, append(values, seq)...)
	return err
}

// DeleteSnapshot implements runtime.Store.
func (s *Store) DeleteSnapshot(ctx context.Context, id string) error {
	err := s.db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM snapshots WHERE id = ?", id)
		return err
	})
	if err != nil {
		return fmt.Errorf("delete snapshot %s: %w", id, err)
	}
	return nil
}
