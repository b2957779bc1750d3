package store

import (
	"context"
	"database/sql"
	"fmt"
	"math"

	"github.com/remotegpu/remotegpu/runtime"
)

// keepHistory is how many entries of one environment's history are kept.
const keepHistory = 100

const (
	selectHistory = "SELECT seq, at, kind, message, exit FROM environment_events WHERE env_id = ? AND seq < ? ORDER BY seq DESC"
	dropHistory   = `DELETE FROM environment_events WHERE env_id = ?1 AND seq <=
		(SELECT seq FROM environment_events WHERE env_id = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)`
)

// insertHistory adds entries and drops the oldest beyond keepHistory.
func insertHistory(ctx context.Context, tx *sql.Tx, id string, news []runtime.History) error {
	if len(news) == 0 {
		return nil
	}
	for _, entry := range news {
		exit, err := toJSON(entry.Exit)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO environment_events (env_id, at, kind, message, exit) VALUES (?, ?, ?, ?, ?)",
			id, millis(entry.Time), entry.Kind, entry.Message, exit); err != nil {
			return err
		}
	}
	_, err := tx.ExecContext(ctx, dropHistory, id, keepHistory)
	return err
}

// History implements runtime.Store.
func (s *Store) History(ctx context.Context, id string, limit int, after string) ([]runtime.History, string, error) {
	before := int64(math.MaxInt64)
	if after != "" {
		if err := parseCursor(after, "h", &before); err != nil {
			return nil, "", err
		}
	}
	var (
		found []runtime.History
		next  string
	)
	err := s.db.Read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, selectHistory, id, before)
		if err != nil {
			return err
		}
		defer rows.Close() //nolint:errcheck // rows.Err tells what went wrong
		var last int64
		for rows.Next() {
			var (
				entry   runtime.History
				seq, at int64
				exit    string
			)
			if err := rows.Scan(&seq, &at, &entry.Kind, &entry.Message, &exit); err != nil {
				return err
			}
			if limit > 0 && len(found) == limit {
				next = cursor("h", last)
				return nil
			}
			if err := fromJSON(exit, &entry.Exit); err != nil {
				return err
			}
			entry.Time = fromMillis(at)
			found, last = append(found, entry), seq
		}
		return rows.Err()
	})
	if err != nil {
		return nil, "", fmt.Errorf("read history of environment %s: %w", id, err)
	}
	return found, next, nil
}
