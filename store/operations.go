package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

const operationColumns = `id, project, kind, target, request_id, request_hash, state, attempts, cancel_requested,
	not_before, lease_owner, lease_expires, args, detail, created_at, started_at, finished_at, revision`

const (
	operationPlaceholders = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
	insertOperationRow    = "INSERT INTO operations (" + operationColumns + ") VALUES " + operationPlaceholders
	updateOperationRow    = "UPDATE operations SET (" + operationColumns + ") = " + operationPlaceholders +
		" WHERE seq = ?"
	// supersedeOperation cancels one, unless it is of the kind that takes its place.
	supersedeOperation = `UPDATE operations SET cancel_requested = 1, revision = revision + 1
		WHERE id = ? AND kind != ? AND cancel_requested = 0 AND state IN ('queued', 'running')`
)

// operationDetail is what nothing selects by.
type operationDetail struct {
	Labels   map[string]string   `json:"labels,omitempty"`
	Progress *operation.Progress `json:"progress,omitempty"`
	Problem  *operation.Problem  `json:"problem,omitempty"`
	Result   map[string]string   `json:"result,omitempty"`
	Retries  int                 `json:"retries,omitempty"`
	Stops    int                 `json:"shutdowns,omitempty"`
}

func scanOperation(row scanner, more ...any) (*operation.Operation, error) {
	var (
		op                                             operation.Operation
		notBefore, expires, created, started, finished int64
		args, detail                                   string
	)
	err := row.Scan(append([]any{
		&op.ID, &op.Project, &op.Kind, &op.Target, &op.RequestID, &op.RequestHash, &op.State, &op.Attempts,
		&op.CancelRequested, &notBefore, &op.LeaseOwner, &expires, &args, &detail, &created, &started, &finished,
		&op.Revision,
	}, more...)...)
	if err != nil {
		return nil, err
	}
	var d operationDetail
	if err := fromJSON(detail, &d); err != nil {
		return nil, err
	}
	if args != "null" {
		op.Args = json.RawMessage(args)
	}
	op.Labels, op.Progress, op.Problem, op.Result = d.Labels, d.Progress, d.Problem, d.Result
	op.Retries, op.Shutdowns = d.Retries, d.Stops
	op.NotBefore, op.LeaseExpires = fromMillis(notBefore), fromMillis(expires)
	op.CreatedAt, op.StartedAt, op.FinishedAt = fromMillis(created), fromMillis(started), fromMillis(finished)
	return &op, nil
}

// operationValues are the columns of operationColumns.
func operationValues(op *operation.Operation) ([]any, error) {
	detail, err := toJSON(operationDetail{op.Labels, op.Progress, op.Problem, op.Result, op.Retries, op.Shutdowns})
	if err != nil {
		return nil, err
	}
	args := "null"
	if len(op.Args) > 0 {
		args = string(op.Args)
	}
	return []any{
		op.ID, op.Project, op.Kind, op.Target, op.RequestID, op.RequestHash, op.State, op.Attempts, op.CancelRequested,
		millis(op.NotBefore), op.LeaseOwner, millis(op.LeaseExpires), args, detail, millis(op.CreatedAt),
		millis(op.StartedAt), millis(op.FinishedAt), op.Revision,
	}, nil
}

// InsertOperation implements operation.Store.
func (s *Store) InsertOperation(ctx context.Context, op *operation.Operation) (existing *operation.Operation, err error) {
	err = s.db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if existing, err = knownRequest(ctx, tx, op); existing != nil || err != nil {
			return err
		}
		return s.insertOperation(ctx, tx, op)
	})
	if err != nil {
		return nil, fmt.Errorf("insert operation %s: %w", op.ID, err)
	}
	return existing, nil
}

// knownRequest returns the operation that op's request id made before, or nil.
func knownRequest(ctx context.Context, tx *sql.Tx, op *operation.Operation) (*operation.Operation, error) {
	if op == nil || op.RequestID == "" {
		return nil, nil //nolint:nilnil // none is an answer
	}
	known, err := scanOperation(tx.QueryRowContext(ctx, "SELECT "+operationColumns+
		" FROM operations WHERE project = ? AND request_id = ?", op.Project, op.RequestID))
	return known, ignoreNoRows(err)
}

// insertOperation writes op as a new row and sets what a new one lacks.
func (s *Store) insertOperation(ctx context.Context, tx *sql.Tx, op *operation.Operation) error {
	if op.CreatedAt.IsZero() {
		op.CreatedAt = s.now()
	}
	op.CreatedAt = stored(op.CreatedAt)
	if op.State == "" {
		op.State = operation.Queued
	}
	op.Revision = 1
	values, err := operationValues(op)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, insertOperationRow, values...)
	return err
}

// OperationByRequest implements operation.Store.
func (s *Store) OperationByRequest(ctx context.Context, project, requestID string) (*operation.Operation, error) {
	op, err := s.operation(ctx, "project = ? AND request_id = ? AND request_id != ''", project, requestID)
	if err != nil {
		return nil, fmt.Errorf("read operation of request %s: %w", requestID, notFound(err, "no operation was made by request %q", requestID))
	}
	return op, nil
}

// Operation implements operation.Store.
func (s *Store) Operation(ctx context.Context, id string) (*operation.Operation, error) {
	op, err := s.operation(ctx, "id = ?", id)
	if err != nil {
		return nil, fmt.Errorf("read operation %s: %w", id, notFound(err, "operation %q does not exist", id))
	}
	return op, nil
}

// notFound makes the absence of a row an OPERATION_NOT_FOUND.
func notFound(err error, format string, args ...any) error {
	if errors.Is(err, sql.ErrNoRows) {
		return problem.New(problem.OperationNotFound, format, args...).
			WithHint("operations are forgotten some days after they are done; list those there are")
	}
	return err
}

func (s *Store) operation(ctx context.Context, where string, args ...any) (op *operation.Operation, err error) {
	err = s.db.Read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		op, err = scanOperation(tx.QueryRowContext(ctx,
			"SELECT "+operationColumns+" FROM operations WHERE "+where, args...))
		return err
	})
	return op, err
}

// operationsQuery selects the rows of a page and one more, which tells whether there
// is another page. It is made of constants; what callers name is in args.
func operationsQuery(filter operation.Filter) (query string, args []any, err error) {
	where := []string{"true"}
	add := func(condition string, values ...any) {
		where = append(where, condition)
		args = append(args, values...)
	}
	// The plus keeps SQLite from going through all operations of a project, which
	// may be all there are, for the few of a target, of a kind, or that are not done.
	few := filter.Target != "" || len(filter.Kinds) > 0 ||
		len(filter.States) > 0 && !slices.ContainsFunc(filter.States, operation.State.Done)
	if filter.Project != "" && few {
		add("+project = ?", filter.Project)
	} else if filter.Project != "" {
		add("project = ?", filter.Project)
	}
	if filter.Target != "" {
		add("target = ?", filter.Target)
	}
	if len(filter.Kinds) > 0 {
		var kinds []any
		for _, kind := range filter.Kinds {
			kinds = append(kinds, kind)
		}
		column := "kind"
		if filter.Target != "" {
			column = "+kind" // as above
		}
		add(column+" IN ("+placeholders(len(kinds))+")", kinds...)
	}
	if len(filter.States) > 0 {
		var states []any
		for _, state := range filter.States {
			states = append(states, state)
		}
		add("state IN ("+placeholders(len(states))+")", states...)
	}
	if filter.After != "" {
		var seq int64
		if err := parseCursor(filter.After, "o", &seq); err != nil {
			return "", nil, err
		}
		add("seq < ?", seq)
	}
	query = "SELECT " + operationColumns + ", seq FROM operations WHERE " + strings.Join(where, " AND ") +
		" ORDER BY seq DESC"
	if filter.Limit > 0 {
		query += " LIMIT ?"
		args = append(args, filter.Limit+1)
	}
	return query, args, nil
}

// Operations implements operation.Store.
func (s *Store) Operations(ctx context.Context, filter operation.Filter) ([]*operation.Operation, string, error) {
	query, args, err := operationsQuery(filter)
	if err != nil {
		return nil, "", err
	}
	found, seqs, err := s.queryOperations(ctx, query, args...)
	if err != nil {
		return nil, "", fmt.Errorf("list operations: %w", err)
	}
	if filter.Limit > 0 && len(found) > filter.Limit {
		return found[:filter.Limit], cursor("o", seqs[filter.Limit-1]), nil
	}
	return found, "", nil
}

const selectPending = "SELECT " + operationColumns + ", seq FROM operations WHERE state IN ('queued', 'running') ORDER BY seq"

// Pending implements operation.Store.
func (s *Store) Pending(ctx context.Context) ([]*operation.Operation, error) {
	found, _, err := s.queryOperations(ctx, selectPending)
	if err != nil {
		return nil, fmt.Errorf("list pending operations: %w", err)
	}
	return found, nil
}

func (s *Store) queryOperations(ctx context.Context, query string, args ...any) (
	found []*operation.Operation, seqs []int64, err error,
) {
	err = s.db.Read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, query, args...)
		if err != nil {
			return err
		}
		defer rows.Close() //nolint:errcheck // rows.Err tells what went wrong
		for rows.Next() {
			var seq int64
			op, err := scanOperation(rows, &seq)
			if err != nil {
				return err
			}
			found, seqs = append(found, op), append(seqs, seq)
		}
		return rows.Err()
	})
	return found, seqs, err
}

// UpdateOperation implements operation.Store.
func (s *Store) UpdateOperation(ctx context.Context, id string, change func(*operation.Operation) error) (
	op *operation.Operation, err error,
) {
	var changeErr error
	err = s.db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		var seq int64
		op, err = scanOperation(tx.QueryRowContext(ctx,
			"SELECT "+operationColumns+", seq FROM operations WHERE id = ?", id), &seq)
		if err != nil {
			return notFound(err, "operation %q does not exist", id)
		}
		if changeErr = change(op); changeErr != nil {
			return changeErr
		}
		op.Revision++
		op.NotBefore, op.LeaseExpires = stored(op.NotBefore), stored(op.LeaseExpires)
		op.StartedAt, op.FinishedAt = stored(op.StartedAt), stored(op.FinishedAt)
		values, err := operationValues(op)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, updateOperationRow, append(values, seq)...)
		return err
	})
	if changeErr != nil {
		return nil, changeErr
	}
	if err != nil {
		return nil, fmt.Errorf("update operation %s: %w", id, err)
	}
	return op, nil
}

// PurgeOperations implements operation.Store.
func (s *Store) PurgeOperations(ctx context.Context, before time.Time) (int, error) {
	var purged int64
	err := s.db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, purgeOperations, millis(before))
		if err != nil {
			return err
		}
		purged, err = result.RowsAffected()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("purge operations: %w", err)
	}
	return int(purged), nil
}
