package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

const insertDNSRow = `INSERT INTO dns_records (id, project, env_id, node, labels, revision, name, alias, type, ttl, data,
	request_id, request_hash, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`

// selectDNS also reads what the environment is called now.
const selectDNS = "SELECT r.id, r.project, r.env_id, r.node, r.labels, r.revision, r.name, r.alias, r.type, r.ttl, r.data, " +
	"r.request_id, r.request_hash, r.created_at, coalesce(e.name, '') FROM dns_records r LEFT JOIN environments e ON e.id = r.env_id "

func scanDNSRecord(row scanner) (*runtime.DNSRecord, error) {
	var (
		r       runtime.DNSRecord
		labels  string
		created int64
	)
	if err := row.Scan(&r.ID, &r.Project, &r.EnvID, &r.Node, &labels, &r.Revision, &r.Name, &r.Alias, &r.Type, &r.TTL, &r.Data,
		&r.RequestID, &r.RequestHash, &created, &r.EnvName); err != nil {
		return nil, err
	}
	r.CreatedAt = fromMillis(created)
	return &r, fromJSON(labels, &r.Labels)
}

func queryDNSRecords(ctx context.Context, tx *sql.Tx, where string, args ...any) ([]*runtime.DNSRecord, error) {
	rows, err := tx.QueryContext(ctx, selectDNS+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells what went wrong
	var records []*runtime.DNSRecord
	for rows.Next() {
		record, err := scanDNSRecord(rows)
		if err != nil {
			return nil, err
		}
		records = append(records, record)
	}
	return records, rows.Err()
}

// CreateDNSRecord implements runtime.DNSStore.
func (s *Store) CreateDNSRecord(ctx context.Context, record *runtime.DNSRecord,
	check func(env *runtime.Environment, others []*runtime.DNSRecord, taken func(string) (bool, error)) error,
) (existing *runtime.DNSRecord, err error) {
	var checkErr error
	err = s.db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if record.RequestID != "" {
			known, err := queryDNSRecords(ctx, tx, "WHERE r.project = ? AND r.request_id = ?", record.Project, record.RequestID)
			if err != nil {
				return err
			}
			if len(known) > 0 {
				existing = known[0]
				return nil
			}
		}
		env, _, err := readEnvironment(ctx, tx, "id = ?", record.EnvID)
		if err != nil {
			return environmentNotFound(err, record.EnvID)
		}
		others, err := queryDNSRecords(ctx, tx, "WHERE r.project = ? ORDER BY r.seq", record.Project)
		if err != nil {
			return err
		}
		taken := func(name string) (is bool, err error) {
			err = tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM environments
				WHERE project = ? AND name = ? AND state != 'deleted')`, record.Project, name).Scan(&is)
			return is, err
		}
		if checkErr = check(env, others, taken); checkErr != nil {
			return checkErr
		}
		row := *record
		row.Revision, row.CreatedAt = 1, stored(row.CreatedAt)
		labels, err := toJSON(row.Labels)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, insertDNSRow,
			row.ID, row.Project, row.EnvID, row.Node, labels, row.Revision, row.Name, row.Alias, row.Type, row.TTL, row.Data,
			row.RequestID, row.RequestHash, millis(row.CreatedAt))
		if err == nil {
			*record = row
		}
		return err
	})
	if checkErr != nil {
		return nil, checkErr
	}
	if err != nil {
		return nil, fmt.Errorf("add DNS record to environment %s: %w", record.EnvID, err)
	}
	return existing, nil
}

// DNSRecord implements runtime.DNSStore.
func (s *Store) DNSRecord(ctx context.Context, id string) (record *runtime.DNSRecord, err error) {
	err = s.db.Read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		record, err = scanDNSRecord(tx.QueryRowContext(ctx, selectDNS+"WHERE r.id = ?", id))
		return dnsRecordNotFound(err, id)
	})
	if err != nil {
		return nil, fmt.Errorf("read DNS record %s: %w", id, err)
	}
	return record, nil
}

func dnsRecordNotFound(err error, id string) error {
	if errors.Is(err, sql.ErrNoRows) {
		return problem.New(problem.DNSRecordNotFound, "DNS record %q does not exist", id).WithField("id").
			WithHint("list the records there are")
	}
	return err
}

// DNSRecords implements runtime.DNSStore.
func (s *Store) DNSRecords(ctx context.Context, filter runtime.DNSFilter) (records []*runtime.DNSRecord, err error) {
	where, args := "WHERE 1", []any(nil)
	if filter.Project != "" {
		where, args = where+" AND r.project = ?", append(args, filter.Project)
	}
	if filter.EnvID != "" {
		where, args = where+" AND r.env_id = ?", append(args, filter.EnvID)
	}
	err = s.db.Read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		records, err = queryDNSRecords(ctx, tx, where+" ORDER BY r.seq", args...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list DNS records: %w", err)
	}
	return records, nil
}

// DeleteDNSRecord implements runtime.DNSStore.
func (s *Store) DeleteDNSRecord(ctx context.Context, id string, revision int64) error {
	err := s.db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		var now int64
		if err := tx.QueryRowContext(ctx, "SELECT revision FROM dns_records WHERE id = ?", id).Scan(&now); err != nil {
			return dnsRecordNotFound(err, id)
		}
		if revision != 0 && revision != now {
			return problem.New(problem.EtagMismatch, "DNS record %s has changed", id).WithField("etag").
				WithHint("read it again and use its etag")
		}
		_, err := tx.ExecContext(ctx, "DELETE FROM dns_records WHERE id = ?", id)
		return err
	})
	if err != nil {
		return fmt.Errorf("delete DNS record %s: %w", id, err)
	}
	return nil
}

// deleteDNSRecords removes those of an environment.
func deleteDNSRecords(ctx context.Context, tx *sql.Tx, envID string) error {
	_, err := tx.ExecContext(ctx, "DELETE FROM dns_records WHERE env_id = ?", envID)
	return err
}

// aliasFree refuses the name of an environment that another one has as an
// alias.
func aliasFree(ctx context.Context, tx *sql.Tx, env *runtime.Environment) error {
	var owner string
	err := tx.QueryRowContext(ctx, `SELECT coalesce(e.name, r.env_id) FROM dns_records r LEFT JOIN environments e ON e.id = r.env_id
		WHERE r.project = ? AND r.alias = 1 AND r.name = ? LIMIT 1`, env.Project, env.Name).Scan(&owner)
	if err != nil {
		return ignoreNoRows(err)
	}
	return problem.New(problem.DNSNameTaken, "%q is an alias of environment %q", env.Name, owner).WithField("name").
		WithHint("choose another name, or remove that alias first (remotegpu dns ls --env %s)", owner)
}
