package store

import (
	"context"
	"database/sql"
	"fmt"
	"math"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/runtime"
)

// GPULeases implements runtime.GPUStore.
func (s *Store) GPULeases(ctx context.Context, filter runtime.LeaseFilter) (found []gpu.Lease, next string, err error) {
	before := int64(math.MaxInt64)
	if filter.After != "" {
		if err := parseCursor(filter.After, "g", &before); err != nil {
			return nil, "", err
		}
	}
	limit := -1 // none
	if filter.Limit > 0 {
		limit = filter.Limit + 1 // one more tells whether there is another page
	}
	query, args := leasesQuery(filter.GPU, before, limit)
	err = s.db.Read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, query, args...)
		if err != nil {
			return err
		}
		defer rows.Close() //nolint:errcheck // rows.Err tells what went wrong
		var last int64
		for rows.Next() {
			l, seq, err := scanLease(rows)
			if err != nil {
				return err
			}
			if filter.Limit > 0 && len(found) == filter.Limit {
				next = cursor("g", last)
				return nil
			}
			found, last = append(found, l), seq
		}
		return rows.Err()
	})
	if err != nil {
		return nil, "", fmt.Errorf("list leases of GPUs: %w", err)
	}
	return found, next, nil
}

// leasesQuery selects leases that were made before one, of one GPU or ("") of all,
// newest first.
func leasesQuery(uuid string, before int64, limit int) (query string, args []any) {
	if uuid == "" {
		return selectLeases + "l.seq < ? ORDER BY l.seq DESC LIMIT ?", []any{before, limit}
	}
	return selectLeases + "l.gpu = ? AND l.seq < ? ORDER BY l.seq DESC LIMIT ?", []any{uuid, before, limit}
}
