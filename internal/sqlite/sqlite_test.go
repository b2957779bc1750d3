package sqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/sqlite"
)

var (
	first  = fstest.MapFS{"0001_items.sql": {Data: []byte("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE CHECK (name != '')) STRICT;")}}
	second = fstest.MapFS{
		"0001_items.sql": first["0001_items.sql"],
		"0002_size.sql":  {Data: []byte("ALTER TABLE items ADD COLUMN size INTEGER NOT NULL DEFAULT 7; CREATE INDEX items_size ON items (size);")},
	}
)

func open(tb testing.TB, path string, migrations fstest.MapFS) *sqlite.DB {
	tb.Helper()
	db, err := sqlite.Open(tb.Context(), sqlite.Config{Path: path, Migrations: migrations, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { db.Close() })
	return db
}

func insert(ctx context.Context, db *sqlite.DB, name string) error {
	return db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO items (name) VALUES (?)", name)
		return err
	})
}

func count(tb testing.TB, db *sqlite.DB) int {
	tb.Helper()
	var n int
	err := db.Read(tb.Context(), func(ctx context.Context, tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, "SELECT count(*) FROM items").Scan(&n)
	})
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

func TestOpenSetsPragmasAndModes(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a dir?", "x#%41.db")
	db := open(t, path, first)
	if err := insert(t.Context(), db, "a"); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{path, path + "-wal", path + "-shm"} {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", file, info.Mode().Perm())
		}
	}
	type access = func(context.Context, func(context.Context, *sql.Tx) error) error
	for name, do := range map[string]access{"writer": db.Write, "reader": db.Read} {
		want := map[string]string{"journal_mode": "wal", "synchronous": "1", "busy_timeout": "5000", "foreign_keys": "1"}
		if name == "reader" {
			want["query_only"] = "1"
		}
		for pragma, value := range want {
			var got string
			if err := do(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
				return tx.QueryRowContext(ctx, "PRAGMA "+pragma).Scan(&got)
			}); err != nil {
				t.Fatal(err)
			}
			if got != value {
				t.Errorf("%s: %s = %s, want %s", name, pragma, got, value)
			}
		}
	}
	err := db.Read(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM items")
		return err
	})
	if err == nil || count(t, db) != 1 {
		t.Errorf("a reader wrote: error %v", err)
	}
}

func TestOpenMigrates(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.db")
	db := open(t, path, first)
	if err := insert(t.Context(), db, "a"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = open(t, path, second)
	if version, err := db.Version(t.Context()); err != nil || version != 2 {
		t.Fatalf("version %d, error %v, want 2", version, err)
	}
	var size int
	if err := db.Read(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, "SELECT size FROM items WHERE name = 'a'").Scan(&size)
	}); err != nil || size != 7 {
		t.Errorf("size %d, error %v, want 7", size, err)
	}
}

func TestOpenRefusesNewer(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.db")
	if err := open(t, path, second).Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = sqlite.Open(t.Context(), sqlite.Config{Path: path, Migrations: first, Log: slog.New(slog.DiscardHandler)})
	if p := problem.Of(err); p == nil || p.Reason != problem.DatabaseNewer ||
		!strings.Contains(p.Message, "version 2") || !strings.Contains(p.Message, "up to 1") {
		t.Fatalf("error %v, want DATABASE_NEWER naming versions 2 and 1", err)
	}
	after, err := os.ReadFile(path)
	if err != nil || string(after) != string(before) {
		t.Errorf("a refused database was changed (%v)", err)
	}
}

func TestFailedMigrationLeavesOldVersion(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.db")
	open(t, path, first).Close()
	broken := fstest.MapFS{
		"0001_items.sql": first["0001_items.sql"],
		"0002_bad.sql":   {Data: []byte("CREATE TABLE more (id INTEGER) STRICT; INSERT INTO absent VALUES (1);")},
	}
	if _, err := sqlite.Open(t.Context(), sqlite.Config{Path: path, Migrations: broken, Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Fatal("a broken migration was applied")
	}
	db := open(t, path, first)
	var tables int
	if err := db.Read(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema WHERE name = 'more'").Scan(&tables)
	}); err != nil || tables != 0 {
		t.Errorf("%d tables of the failed migration are there, error %v", tables, err)
	}
}

func TestOpenRefusesBadMigrationNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"0002_gap.sql", "1_short.sql", "0001.sql", "first_a.sql"} {
		_, err := sqlite.Open(t.Context(), sqlite.Config{
			Path: filepath.Join(t.TempDir(), "x.db"), Log: slog.New(slog.DiscardHandler),
			Migrations: fstest.MapFS{name: {Data: []byte("SELECT 1;")}},
		})
		if err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestOpenConcurrently(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.db")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			db, err := sqlite.Open(t.Context(), sqlite.Config{Path: path, Migrations: second, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Error(err)
				return
			}
			db.Close()
		})
	}
	wg.Wait()
}

func TestOpenNotADatabase(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("not a database ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := sqlite.Open(t.Context(), sqlite.Config{Path: path, Migrations: first, Log: slog.New(slog.DiscardHandler)})
	if p := problem.Of(err); p == nil || p.Reason != problem.DatabaseFailed {
		t.Errorf("error %v, want DATABASE_FAILED", err)
	}
}

func TestWriteErrorsHaveKinds(t *testing.T) {
	t.Parallel()
	db := open(t, filepath.Join(t.TempDir(), "x.db"), first)
	if err := insert(t.Context(), db, "a"); err != nil {
		t.Fatal(err)
	}
	if err := insert(t.Context(), db, "a"); !errdefs.IsAlreadyExists(err) || !sqlite.IsUnique(err) {
		t.Errorf("duplicate: %v", err)
	}
	if err := insert(t.Context(), db, ""); !errdefs.IsFailedPrecondition(err) || sqlite.IsUnique(err) {
		t.Errorf("check: %v", err)
	}
	mine := errors.New("mine")
	err := db.Write(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "INSERT INTO items (name) VALUES ('b')"); err != nil {
			return err
		}
		return mine
	})
	if err != mine || count(t, db) != 1 { //nolint:errorlint // it must be the very error
		t.Errorf("error %v, %d rows; want the caller's error and 1 row", err, count(t, db))
	}
	err = db.Read(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
		var name string
		return tx.QueryRowContext(ctx, "SELECT name FROM items WHERE id = 99").Scan(&name)
	})
	if !errdefs.IsNotFound(err) {
		t.Errorf("no rows: %v", err)
	}
}

func TestWritePanicRollsBack(t *testing.T) {
	t.Parallel()
	db := open(t, filepath.Join(t.TempDir(), "x.db"), first)
	func() {
		defer func() { _ = recover() }()
		_ = db.Write(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, "INSERT INTO items (name) VALUES ('b')"); err != nil {
				return err
			}
			panic("in the middle")
		})
	}()
	if err := insert(t.Context(), db, "a"); err != nil {
		t.Fatalf("the writer is stuck: %v", err)
	}
	if n := count(t, db); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
}

func TestWriteCancelled(t *testing.T) {
	t.Parallel()
	db := open(t, filepath.Join(t.TempDir(), "x.db"), first)
	ctx, cancel := context.WithCancel(t.Context())
	// Once it has the turn, a write is done whatever its caller does.
	err := db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		cancel()
		_, err := tx.ExecContext(ctx, "INSERT INTO items (name) VALUES ('b')")
		return err
	})
	if err != nil || count(t, db) != 1 {
		t.Errorf("error %v, %d rows", err, count(t, db))
	}
	if err := insert(ctx, db, "c"); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want cancelled", err)
	}
}

func TestCloseLeavesOneFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.db")
	db := open(t, path, first)
	if err := insert(t.Context(), db, "a"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"-wal", "-shm"} {
		if _, err := os.Stat(path + suffix); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there after close (%v)", suffix, err)
		}
	}
	copied := filepath.Join(t.TempDir(), "copy.db")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(copied, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if n := count(t, open(t, copied, first)); n != 1 {
		t.Errorf("the copy has %d rows, want 1", n)
	}
}

func TestBackup(t *testing.T) {
	t.Parallel()
	db := open(t, filepath.Join(t.TempDir(), "x.db"), first)
	if err := insert(t.Context(), db, "a"); err != nil {
		t.Fatal(err)
	}
	backup := filepath.Join(t.TempDir(), "backup.db")
	if err := db.Backup(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	if err := insert(t.Context(), db, "b"); err != nil {
		t.Fatal(err)
	}
	if n := count(t, open(t, backup, first)); n != 1 {
		t.Errorf("the backup has %d rows, want 1", n)
	}
	if err := db.Backup(t.Context(), backup); !errors.Is(err, os.ErrExist) {
		t.Errorf("error %v, want exists", err)
	}
}
