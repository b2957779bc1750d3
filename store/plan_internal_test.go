package store

import (
	"context"
	"database/sql"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
)

// White-box: that a list reads no more than it answers is seen only by what
// SQLite means to do.
func TestListsOfOperationsAreIndexed(t *testing.T) {
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for where, index := range map[string]string{
		"project = ?": "operations_project", "project = ? AND seq < ?": "operations_project",
		"state IN (?)": "operations_state", "state IN (?) AND seq < ?": "operations_state", "target = ?": "operations_target",
	} {
		var plan strings.Builder
		err := s.db.Read(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
			rows, err := tx.QueryContext(ctx, "EXPLAIN QUERY PLAN SELECT "+operationColumns+", seq FROM operations WHERE true AND "+where+
				" ORDER BY seq DESC LIMIT 10", make([]any, strings.Count(where, "?"))...)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var id, parent, unused int
				var detail string
				if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
					return err
				}
				plan.WriteString(detail + "; ")
			}
			return rows.Err()
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := plan.String(); !strings.Contains(got, "USING INDEX "+index) || strings.Contains(got, "TEMP B-TREE") {
			t.Errorf("%s: %s", where, got)
		}
	}
}
