package sqlite

import (
	"context"
	"database/sql"
	"errors"

	"github.com/containerd/errdefs"
	"github.com/mattn/go-sqlite3"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// kindError is a driver error with its kind.
type kindError struct {
	kind error
	err  error
}

func (e *kindError) Error() string   { return e.err.Error() }
func (e *kindError) Unwrap() []error { return []error{e.kind, e.err} }

// Error gives a driver error its errdefs kind: AlreadyExists for a violated
// uniqueness, FailedPrecondition for another constraint, NotFound for no rows,
// Unavailable while locked, a DISK_FULL problem, a DATABASE_FAILED problem when
// the file or the disk is damaged. Other errors,
// and those that have their kind, come back as they are.
func Error(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*kindError](err); ok {
		return err
	}
	if errors.Is(err, sql.ErrNoRows) {
		return &kindError{errdefs.ErrNotFound, err}
	}
	if errors.Is(err, sql.ErrConnDone) {
		return &kindError{errdefs.ErrUnavailable, err}
	}
	driverErr, ok := errors.AsType[sqlite3.Error](err)
	if !ok {
		return err
	}
	switch driverErr.Code {
	case sqlite3.ErrConstraint:
		if IsUnique(err) {
			return &kindError{errdefs.ErrAlreadyExists, err}
		}
		return &kindError{errdefs.ErrFailedPrecondition, err}
	case sqlite3.ErrBusy, sqlite3.ErrLocked, sqlite3.ErrProtocol:
		return &kindError{errdefs.ErrUnavailable, err}
	case sqlite3.ErrFull:
		return problem.New(problem.DiskFull, "the database cannot grow: its disk is full").
			WithHint("make room on the disk of node.state_dir; nothing was changed").WithCause(err)
	case sqlite3.ErrInterrupt:
		return &kindError{context.Canceled, err}
	case sqlite3.ErrIoErr, sqlite3.ErrCorrupt, sqlite3.ErrNotADB, sqlite3.ErrCantOpen,
		sqlite3.ErrReadonly, sqlite3.ErrPerm, sqlite3.ErrAuth:
		return problem.New(problem.DatabaseFailed, "the database cannot be used").
			WithHint("check the disk and the file's owner; restore a backup if the file is damaged").WithCause(err)
	default:
		return &kindError{errdefs.ErrInternal, err}
	}
}

// IsConstraint says whether a constraint, an index or a trigger of the schema
// refused the write.
func IsConstraint(err error) bool {
	driverErr, ok := errors.AsType[sqlite3.Error](err)
	return ok && driverErr.Code == sqlite3.ErrConstraint
}

// IsUnique says whether a unique index or a primary key refused the write.
func IsUnique(err error) bool {
	driverErr, ok := errors.AsType[sqlite3.Error](err)
	return ok && (driverErr.ExtendedCode == sqlite3.ErrConstraintUnique ||
		driverErr.ExtendedCode == sqlite3.ErrConstraintPrimaryKey)
}
