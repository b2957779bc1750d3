// Package sqlite opens a SQLite file with the discipline that every database
// of ours keeps: write-ahead log, one writer that begins immediate, a pool of
// readers that cannot write, numbered migrations, and driver errors turned
// into errdefs kinds. It knows no schema: the caller brings the migrations.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"time"

	_ "github.com/mattn/go-sqlite3" // the driver "sqlite3"

	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// Config says which database to open.
type Config struct {
	// Path of the file. It is made, with mode 0600, in a directory that is
	// made with mode 0700.
	Path string
	// Migrations holds NNNN_name.sql files, numbered from 0001 without gaps.
	Migrations fs.FS
	// Log gets what an operator should know. Required.
	Log *slog.Logger
	// Readers is how many reads may run at once. 0: as many as CPUs, at
	// least 4.
	Readers int
	// BusyTimeout is how long to wait for a lock of another process. 0: 5 s.
	BusyTimeout time.Duration
}

// statements that each connection keeps prepared; more than any schema of
// ours has.
const statementCache = 96

// DB is an open database. Its methods are safe for concurrent use.
type DB struct {
	writer *sql.DB
	reader *sql.DB
	path   string
}

// Open opens the file, making it when absent, and brings its schema up to
// date. A schema newer than the migrations is a DATABASE_NEWER problem that
// names both versions, and the file is left as it was.
func Open(ctx context.Context, cfg Config) (*DB, error) {
	migrations, err := readMigrations(cfg.Migrations)
	if err != nil {
		return nil, err
	}
	path, err := filepath.Abs(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", cfg.Path, err)
	}
	if err := makeFile(path); err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	timeout := cfg.BusyTimeout
	if timeout == 0 {
		timeout = 5 * time.Second
	}
	db := &DB{path: path}
	if db.writer, err = sql.Open("sqlite3", dsn(path, timeout, url.Values{
		"mode": {"rw"}, "_journal_mode": {"wal"}, "_txlock": {"immediate"},
	})); err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	db.writer.SetMaxOpenConns(1)
	db.writer.SetMaxIdleConns(1)
	if err := migrate(ctx, db.writer, path, migrations, cfg.Log); err != nil {
		return nil, errors.Join(err, db.writer.Close())
	}
	if db.reader, err = sql.Open("sqlite3", dsn(path, timeout, url.Values{
		"mode": {"ro"}, "_query_only": {"on"},
	})); err != nil {
		return nil, errors.Join(fmt.Errorf("open database %s: %w", path, err), db.writer.Close())
	}
	readers := cfg.Readers
	if readers == 0 {
		readers = max(4, goruntime.NumCPU())
	}
	db.reader.SetMaxOpenConns(readers)
	db.reader.SetMaxIdleConns(readers)
	return db, nil
}

// makeFile makes the database file before SQLite does, so that it and the
// files that SQLite puts beside it are for its owner alone.
func makeFile(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func dsn(path string, timeout time.Duration, values url.Values) string {
	values.Set("_busy_timeout", strconv.FormatInt(timeout.Milliseconds(), 10))
	values.Set("_foreign_keys", "on")
	values.Set("_synchronous", "normal")
	values.Set("_stmt_cache_size", strconv.Itoa(statementCache))
	return (&url.URL{Scheme: "file", Path: path, RawQuery: values.Encode()}).String()
}

// Write runs fn in one immediate transaction and commits when it returns nil.
// Writers take turns; ctx bounds the wait for the turn, and then no longer
// matters: a short transaction either happens or does not, whatever the
// caller does. fn must use the context that it is given. Errors of the driver
// come back with their kind, others as they are.
func (db *DB) Write(ctx context.Context, fn func(context.Context, *sql.Tx) error) error {
	conn, err := db.writer.Conn(ctx)
	if err != nil {
		return Error(err)
	}
	defer conn.Close() //nolint:errcheck // returns the connection to the pool, nothing more
	if err := fault.Before(ctx, "database write"); err != nil {
		return err
	}
	if err := inTx(context.WithoutCancel(ctx), conn, fn); err != nil {
		return err
	}
	return fault.After(ctx, "database write")
}

// Read runs fn in a transaction that sees one state of the database. It does
// not wait for writers.
func (db *DB) Read(ctx context.Context, fn func(context.Context, *sql.Tx) error) error {
	conn, err := db.reader.Conn(ctx)
	if err != nil {
		return Error(err)
	}
	defer conn.Close() //nolint:errcheck // returns the connection to the pool, nothing more
	return inTx(ctx, conn, fn)
}

func inTx(ctx context.Context, conn *sql.Conn, fn func(context.Context, *sql.Tx) error) (err error) {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return Error(err)
	}
	// Also when fn panics: the one writer must not stay in a transaction.
	defer tx.Rollback() //nolint:errcheck // after a commit it has nothing to do
	if err := fn(ctx, tx); err != nil {
		return Error(err)
	}
	return Error(tx.Commit())
}

// Backup writes a consistent copy to path, which must not exist, while the
// database is in use.
func (db *DB) Backup(ctx context.Context, path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("back up database to %s: %w", path, os.ErrExist)
	}
	// A copy is a read, but query_only refuses it: so it is the writer's turn.
	if _, err := db.writer.ExecContext(ctx, "VACUUM INTO ?", path); err != nil {
		return fmt.Errorf("back up database to %s: %w", path, Error(err))
	}
	return os.Chmod(path, 0o600)
}

// Close moves the write-ahead log into the file and closes it, so that the
// file alone is the whole database from then on.
func (db *DB) Close() error {
	err := db.reader.Close()
	// The last connection to close checkpoints and removes the log by itself,
	// unless another process has the file open: then this is all that can be
	// done. It has no caller whose patience counts.
	_, checkpointErr := db.writer.ExecContext(context.TODO(), "PRAGMA wal_checkpoint(TRUNCATE)")
	return errors.Join(err, Error(checkpointErr), db.writer.Close())
}

// Path is the path of the file.
func (db *DB) Path() string { return db.path }

// Version is the schema version of the file.
func (db *DB) Version(ctx context.Context) (int, error) {
	var version int
	err := db.reader.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version)
	return version, Error(err)
}

func newerProblem(path string, have, know int) error {
	return problem.New(problem.DatabaseNewer,
		"database %s has schema version %d, this program knows versions up to %d", path, have, know).
		WithHint("start the newer release that wrote it, or restore the backup made before the upgrade")
}
