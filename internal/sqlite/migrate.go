package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strconv"
	"strings"
)

type migration struct {
	version int
	name    string
	script  string
}

// readMigrations reads NNNN_name.sql files and refuses a gap or a duplicate:
// the number is what user_version counts.
func readMigrations(fsys fs.FS) ([]migration, error) {
	names, err := fs.Glob(fsys, "*.sql")
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	slices.Sort(names)
	migrations := make([]migration, 0, len(names))
	for i, name := range names {
		number, _, found := strings.Cut(name, "_")
		version, err := strconv.Atoi(number)
		if !found || err != nil || len(number) != 4 || version != i+1 {
			return nil, fmt.Errorf("read migration %s: its name should begin with %04d_", name, i+1)
		}
		script, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, fmt.Errorf("read migration %s: %w", name, err)
		}
		migrations = append(migrations, migration{version: version, name: name, script: string(script)})
	}
	return migrations, nil
}

// migrate applies what is missing, each migration in a transaction of its own
// together with its user_version: a crash leaves a whole version.
func migrate(ctx context.Context, writer *sql.DB, path string, migrations []migration, log *slog.Logger) error {
	conn, err := writer.Conn(ctx)
	if err != nil {
		return fmt.Errorf("open database %s: %w", path, Error(err))
	}
	defer conn.Close() //nolint:errcheck // returns the connection to the pool, nothing more
	for done := false; !done; {
		var applied *migration
		err := inTx(ctx, conn, func(ctx context.Context, tx *sql.Tx) error {
			var version int
			if err := tx.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
				return err
			}
			if version > len(migrations) {
				return newerProblem(path, version, len(migrations))
			}
			if version == len(migrations) {
				done = true
				return nil
			}
			// Read again inside the transaction each time, since another
			// process may be opening the same file.
			applied = &migrations[version]
			if _, err := tx.ExecContext(ctx, applied.script); err != nil {
				return fmt.Errorf("apply migration %s: %w", applied.name, err)
			}
			_, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", applied.version))
			return err
		})
		if err != nil {
			return fmt.Errorf("migrate database %s: %w", path, err)
		}
		if applied != nil {
			log.InfoContext(ctx, "database migrated", "path", path, "migration", applied.name)
		}
	}
	return nil
}
