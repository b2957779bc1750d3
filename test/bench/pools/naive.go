package pools

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"syscall"
	"testing/fstest"

	"github.com/remotegpu/remotegpu/internal/sqlite"
)

// naive is what one writes first: for each port it asks the database for all
// that are leased, goes through the range for one that is not, tries to listen
// on it over IPv4 and IPv6, and inserts a row. The database is opened as ours
// is.
type naive struct{ db *sqlite.DB }

const leases = `CREATE TABLE leases (port INTEGER PRIMARY KEY, environment TEXT NOT NULL, service TEXT NOT NULL, inside INTEGER NOT NULL,
	created_at INTEGER NOT NULL) STRICT;`

func openNaive(ctx context.Context, dir string) (*naive, error) {
	db, err := sqlite.Open(ctx, sqlite.Config{
		Path: filepath.Join(dir, "naive.db"), Log: slog.New(slog.DiscardHandler),
		Migrations: fstest.MapFS{"0001_leases.sql": &fstest.MapFile{Data: []byte(leases)}},
	})
	if err != nil {
		return nil, err
	}
	return &naive{db}, nil
}

func (n *naive) close() error { return n.db.Close() }

// allocate takes so many ports, one after the other.
func (n *naive) allocate(ctx context.Context, count int) error {
	for i := range count {
		if err := n.one(ctx, "env-"+strconv.Itoa(i/perEnvironment)); err != nil {
			return err
		}
	}
	return nil
}

func (n *naive) one(ctx context.Context, environment string) error {
	leased := make(map[int]bool)
	err := n.db.Read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, "SELECT port FROM leases")
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var port int
			if err := rows.Scan(&port); err != nil {
				return err
			}
			leased[port] = true
		}
		return rows.Err()
	})
	if err != nil {
		return fmt.Errorf("read leases: %w", err)
	}
	for port := first; port <= last; port++ {
		if leased[port] || !listens(ctx, port) {
			continue
		}
		err := n.db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "INSERT INTO leases VALUES (?, ?, 'custom', 80, 0)", port, environment)
			return err
		})
		if err != nil {
			return fmt.Errorf("insert lease: %w", err)
		}
		return nil
	}
	return errors.New("no port is left")
}

// listens tells whether one can listen on a port.
func listens(ctx context.Context, port int) bool {
	var config net.ListenConfig
	for _, network := range []string{"tcp4", "tcp6"} {
		listener, err := config.Listen(ctx, network, ":"+strconv.Itoa(port))
		if errors.Is(err, syscall.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return false
		}
		_ = listener.Close()
	}
	return true
}
