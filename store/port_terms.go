package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/remotegpu/remotegpu/network/port"
)

// termsLimit is how many former terms are kept of one mapping. Before them it is
// said to have had the oldest that are known.
const termsLimit = 1000

const (
	keepTerms = `INSERT INTO port_mapping_terms (mapping_id, until, description, sources, expires_at)
		SELECT id, ?1, description, sources, expires_at FROM port_mappings
		WHERE id = ?2 AND env_id = ?3 AND status IN ('reserved', 'active')`
	dropTerms = `DELETE FROM port_mapping_terms WHERE mapping_id = ?1 AND seq <=
		(SELECT seq FROM port_mapping_terms WHERE mapping_id = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)`
	// SQLite takes the other columns from the row that has the minimum.
	selectTerms = `SELECT mapping_id, min(seq), description, sources, expires_at FROM port_mapping_terms
		WHERE mapping_id IN (SELECT value FROM json_each(?1)) AND until > ?2 GROUP BY mapping_id`
)

// describeMappings changes the terms of mappings and keeps those they had.
func describeMappings(ctx context.Context, tx *sql.Tx, envID string, mappings []port.Mapping, at time.Time) error {
	for _, m := range mappings {
		sources, err := sourcesText(m.Sources)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, keepTerms, millis(at), m.ID, envID); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, dropTerms, m.ID, termsLimit); err != nil {
			return err
		}
		if _, err := markMappings(ctx, tx, `description = ?1, sources = ?2, expires_at = ?3, updated_at = ?4
			WHERE env_id = ?5 AND id = ?6 AND status IN ('reserved', 'active')`,
			m.Description, sources, millis(m.ExpiresAt), millis(at), envID, m.ID); err != nil {
			return err
		}
	}
	return nil
}

// termsAt gives mappings the terms that they had at a time.
func termsAt(ctx context.Context, tx *sql.Tx, mappings []port.Mapping, at time.Time) error {
	byID := make(map[string]*port.Mapping, len(mappings))
	ids := make([]string, len(mappings))
	for i := range mappings {
		ids[i] = mappings[i].ID
		byID[ids[i]] = &mappings[i]
	}
	list, err := toJSON(ids)
	if err != nil {
		return err
	}
	rows, err := tx.QueryContext(ctx, selectTerms, list, millis(at))
	if err != nil {
		return err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells what went wrong
	for rows.Next() {
		var (
			id, description, text string
			seq, expires          int64
		)
		if err := rows.Scan(&id, &seq, &description, &text, &expires); err != nil {
			return err
		}
		m := byID[id]
		m.Description, m.ExpiresAt, m.Sources = description, fromMillis(expires), nil
		if text != noSources {
			if err := fromJSON(text, &m.Sources); err != nil {
				return err
			}
		}
	}
	return rows.Err()
}
