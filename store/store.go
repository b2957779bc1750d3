// Package store keeps what a node should be in SQLite: environments,
// operations, port mappings and ranges. It implements the Store interfaces of
// runtime, runtime/operation and network/port; the schema's constraints carry
// their invariants. Each public method is one transaction. What is, as opposed
// to what should be, is asked of containerd and the kernel, never of this.
package store

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/remotegpu/remotegpu/internal/sqlite"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store is the node's database. Its methods are safe for concurrent use.
type Store struct {
	db      *sqlite.DB
	now     func() time.Time
	decoded decoded
}

var (
	_ runtime.Store   = (*Store)(nil)
	_ operation.Store = (*Store)(nil)
	_ port.Store      = (*Store)(nil)
)

// Open opens the database at path, making it when absent, and migrates it.
// DATABASE_NEWER, naming both versions, when a newer release wrote it;
// DATABASE_FAILED when it cannot be used.
func Open(ctx context.Context, path string, log *slog.Logger) (*Store, error) {
	scripts, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	db, err := sqlite.Open(ctx, sqlite.Config{Path: path, Migrations: scripts, Log: log})
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return &Store{db: db, now: time.Now}, nil
}

// Close closes the database; the one file is all of it afterwards.
func (s *Store) Close() error { return s.db.Close() }

// Backup writes a consistent copy to path, which must not exist, while the
// store is in use.
func (s *Store) Backup(ctx context.Context, path string) error { return s.db.Backup(ctx, path) }

// Reserve takes room on the disk for writes after it is full. DISK_FULL when there
// is none.
func (s *Store) Reserve(ctx context.Context) error { return s.db.Reserve(ctx) }

// Meta returns a value about the node itself, "" when it was never set.
func (s *Store) Meta(ctx context.Context, key string) (string, error) {
	var value string
	err := s.db.Read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		var err error
		value, err = meta(ctx, tx, key)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read meta %s: %w", key, err)
	}
	return value, nil
}

// SetMeta sets a value about the node itself.
func (s *Store) SetMeta(ctx context.Context, key, value string) error {
	err := s.db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error { return setMeta(ctx, tx, key, value) })
	if err != nil {
		return fmt.Errorf("write meta %s: %w", key, err)
	}
	return nil
}

func meta(ctx context.Context, tx *sql.Tx, key string) (string, error) {
	var value string
	err := tx.QueryRowContext(ctx, "SELECT value FROM meta WHERE key = ?", key).Scan(&value)
	return value, ignoreNoRows(err)
}

func setMeta(ctx context.Context, tx *sql.Tx, key, value string) error {
	_, err := tx.ExecContext(ctx,
		"INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", key, value)
	return err
}
