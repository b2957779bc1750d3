package store

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/sqlite"
	"github.com/remotegpu/remotegpu/network/port"
)

const mappingColumns = `id, env_id, project, host_id, service, internal_port, external_port, protocol,
	description, sources, expires_at, status, created_at, updated_at, released_at, revision`

const selectMappings = "SELECT " + mappingColumns + `, CASE status WHEN 'released' THEN env_name
	ELSE coalesce((SELECT name FROM environments WHERE environments.id = env_id), '') END, seq FROM port_mappings WHERE `

// nowFormer keeps the name that the environment has as mappings of it are
// released.
const nowFormer = "status = 'released', env_name = coalesce((SELECT name FROM environments WHERE environments.id = env_id), ''), "

func scanMapping(row scanner, more ...any) (port.Mapping, error) {
	var (
		m                                   port.Mapping
		sources                             string
		created, updated, released, expires int64
	)
	if err := row.Scan(append([]any{
		&m.ID, &m.EnvID, &m.Project, &m.HostID, &m.Service, &m.Internal, &m.External, &m.Protocol,
		&m.Description, &sources, &expires, &m.Status, &created, &updated, &released, &m.Revision,
	}, more...)...); err != nil {
		return m, err
	}
	m.CreatedAt, m.UpdatedAt, m.ReleasedAt, m.ExpiresAt = fromMillis(created), fromMillis(updated), fromMillis(released), fromMillis(expires)
	if sources == noSources {
		return m, nil
	}
	return m, fromJSON(sources, &m.Sources)
}

// scanNamedMapping reads what selectMappings selects.
func scanNamedMapping(row scanner, seq *int64) (m port.Mapping, err error) {
	var name string
	m, err = scanMapping(row, &name, seq)
	m.EnvName = name
	return m, err
}

// noSources is an empty list of sources as it is kept.
const noSources = "[]"

// sourcesText is a list of sources as it is kept.
func sourcesText(sources []netip.Prefix) (string, error) {
	if len(sources) == 0 {
		return noSources, nil
	}
	return toJSON(sources)
}

// selectsMappings is the condition that a filter means, and the order of what it
// selects. Both are made of constants; what callers name is in args.
func selectsMappings(hostID string, filter port.Filter) (condition, order string, args []any, err error) {
	// A plus keeps SQLite from going through all that a host ever released, for the
	// sake of its order or its host: only a list of that should.
	where, place := []string{"host_id = ?"}, "external_port"
	switch {
	case filter.EnvID != "", filter.EnvName != "", filter.ID != "", !filter.ReleasedSince.IsZero():
		where[0], place = "+host_id = ?", "+external_port"
	case !filter.IncludeReleased && filter.At.IsZero(): // those that are held are few
		place = "+external_port"
	}
	args = []any{hostID}
	add := func(condition string, values ...any) {
		where = append(where, condition)
		args = append(args, values...)
	}
	for _, by := range []struct{ column, value string }{ // in one order, so that statements stay prepared
		{"env_id", filter.EnvID},
		{"project", filter.Project},
		{"service", string(filter.Service)},
		{"id", filter.ID},
		{"protocol", string(filter.Protocol)},
	} {
		if by.value != "" {
			add(by.column+" = ?", by.value)
		}
	}
	if filter.EnvName != "" {
		add("env_name != '' AND env_name = ?", filter.EnvName) // the first lets the index be used
	}
	if filter.External != 0 {
		add("external_port = ?", filter.External)
	}
	if !filter.At.IsZero() {
		add("created_at <= ? AND (released_at = 0 OR released_at > ?)", millis(filter.At), millis(filter.At))
	}
	switch {
	case !filter.ReleasedSince.IsZero():
		add("status = 'released' AND released_at >= ?", millis(filter.ReleasedSince))
	case !filter.IncludeReleased && filter.At.IsZero():
		add("status IN ('reserved', 'active')")
	}
	if filter.After != "" {
		var external, seq int64
		if err := parseCursor(filter.After, "p", &external, &seq); err != nil {
			return "", "", nil, err
		}
		add("("+place+", seq) > (?, ?)", external, seq)
	}
	return strings.Join(where, " AND "), place + ", seq", args, nil
}

// mappingsQuery selects the rows of a page and one more, which tells whether there is
// another page.
func mappingsQuery(hostID string, filter port.Filter) (query string, args []any, err error) {
	where, order, args, err := selectsMappings(hostID, filter)
	if err != nil {
		return "", nil, err
	}
	query = selectMappings + where + " ORDER BY " + order
	if filter.Limit > 0 {
		query += " LIMIT ?"
		args = append(args, filter.Limit+1)
	}
	return query, args, nil
}

// PortMappings implements port.Store.
func (s *Store) PortMappings(ctx context.Context, hostID string, filter port.Filter) ([]port.Mapping, string, error) {
	query, args, err := mappingsQuery(hostID, filter)
	if err != nil {
		return nil, "", err
	}
	var (
		found []port.Mapping
		next  string
		seqs  []int64
	)
	err = s.db.Read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, query, args...)
		if err != nil {
			return err
		}
		defer rows.Close() //nolint:errcheck // rows.Err tells what went wrong
		for rows.Next() {
			var seq int64
			m, err := scanNamedMapping(rows, &seq)
			if err != nil {
				return err
			}
			found, seqs = append(found, m), append(seqs, seq)
		}
		if err := rows.Err(); err != nil || filter.At.IsZero() {
			return err
		}
		return termsAt(ctx, tx, found, filter.At)
	})
	if err != nil {
		return nil, "", fmt.Errorf("list port mappings: %w", err)
	}
	if filter.Limit > 0 && len(found) > filter.Limit {
		found = found[:filter.Limit]
		last := filter.Limit - 1
		next = cursor("p", int64(found[last].External), seqs[last])
	}
	return found, next, nil
}

// InsertPortMappings implements port.Store.
func (s *Store) InsertPortMappings(ctx context.Context, mappings []port.Mapping) error {
	err := s.db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error { return insertMappings(ctx, tx, mappings) })
	if err != nil {
		return fmt.Errorf("insert port mappings: %w", err)
	}
	return nil
}

func insertMappings(ctx context.Context, tx *sql.Tx, mappings []port.Mapping) error {
	for _, m := range mappings {
		sources, err := sourcesText(m.Sources)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "INSERT INTO port_mappings ("+mappingColumns+
			") VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
			m.ID, m.EnvID, m.Project, m.HostID, m.Service, m.Internal, m.External, m.Protocol,
			m.Description, sources, millis(m.ExpiresAt), m.Status, millis(m.CreatedAt), millis(m.UpdatedAt), millis(m.ReleasedAt), max(m.Revision, 1))
		if err == nil {
			continue
		}
		if sqlite.IsUnique(err) {
			// Either the port is held or the id was used before.
			var holder string
			query := tx.QueryRowContext(ctx, `SELECT id FROM port_mappings
				WHERE host_id = ? AND protocol = ? AND external_port = ? AND status IN ('reserved', 'active')`,
				m.HostID, m.Protocol, m.External)
			if query.Scan(&holder) == nil {
				return &port.ConflictError{Protocol: m.Protocol, Port: m.External}
			}
		}
		return err
	}
	return nil
}

// Changes that markMappings makes.
const (
	markedMappings = "UPDATE port_mappings SET revision = revision + 1, "
	releaseOfHost  = nowFormer + `released_at = max(?1, 1), updated_at = ?1
		WHERE +host_id = ?2 AND env_id = ?3 AND status IN ('reserved', 'active')`
	release = nowFormer + `released_at = ?1, updated_at = ?1
		WHERE env_id = ?2 AND status IN ('reserved', 'active')`
	releaseListed = nowFormer + `released_at = ?1, updated_at = ?1
		WHERE env_id = ?2 AND id IN (SELECT value FROM json_each(?3)) AND status IN ('reserved', 'active')`
)

// ReleasePortMappings implements port.Store.
func (s *Store) ReleasePortMappings(ctx context.Context, hostID, envID string, at time.Time) ([]port.Mapping, error) {
	var released []port.Mapping
	err := s.db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		var err error
		released, err = markMappings(ctx, tx, releaseOfHost, millis(at), hostID, envID)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("release port mappings of %s: %w", envID, err)
	}
	return released, nil
}

// releaseMappings releases what an environment holds on any host: the store
// of a node has mappings of its own host only.
func releaseMappings(ctx context.Context, tx *sql.Tx, envID string, at time.Time) ([]port.Mapping, error) {
	return markMappings(ctx, tx, release, millis(at), envID)
}

// releaseSome releases those of an environment's mappings that it still holds.
func releaseSome(ctx context.Context, tx *sql.Tx, envID string, mappings []port.Mapping, at time.Time) ([]port.Mapping, error) {
	if len(mappings) == 0 {
		return nil, nil
	}
	ids := make([]string, len(mappings))
	for i, m := range mappings {
		ids[i] = m.ID
	}
	list, err := toJSON(ids)
	if err != nil {
		return nil, err
	}
	return markMappings(ctx, tx, releaseListed, millis(at), envID, list)
}

func activateMappings(ctx context.Context, tx *sql.Tx, envID string, at time.Time) error {
	_, err := markMappings(ctx, tx, "status = 'active', updated_at = ?1 WHERE env_id = ?2 AND status = 'reserved'",
		millis(at), envID)
	return err
}

func markMappings(ctx context.Context, tx *sql.Tx, change string, args ...any) ([]port.Mapping, error) {
	return queryMappings(ctx, tx, markedMappings+change+" RETURNING "+mappingColumns, args...)
}

func queryMappings(ctx context.Context, tx *sql.Tx, query string, args ...any) ([]port.Mapping, error) {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells what went wrong
	var found []port.Mapping
	for rows.Next() {
		m, err := scanMapping(rows)
		if err != nil {
			return nil, err
		}
		found = append(found, m)
	}
	return found, rows.Err()
}

// PortRanges implements port.Store.
func (s *Store) PortRanges(ctx context.Context, hostID string) ([]port.Range, error) {
	var found []port.Range
	err := s.db.Read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, `SELECT service, first_port, last_port, internal_port, revision
			FROM port_ranges WHERE host_id = ? ORDER BY service`, hostID)
		if err != nil {
			return err
		}
		defer rows.Close() //nolint:errcheck // rows.Err tells what went wrong
		for rows.Next() {
			var r port.Range
			if err := rows.Scan(&r.Service, &r.First, &r.Last, &r.Internal, &r.Revision); err != nil {
				return err
			}
			found = append(found, r)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("list port ranges: %w", err)
	}
	return found, nil
}

// SetPortRange implements port.Store.
func (s *Store) SetPortRange(ctx context.Context, hostID string, r port.Range) error {
	err := s.db.Write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		var revision int64
		err := tx.QueryRowContext(ctx, "SELECT revision FROM port_ranges WHERE host_id = ? AND service = ?",
			hostID, r.Service).Scan(&revision)
		if err := ignoreNoRows(err); err != nil {
			return err
		}
		if revision != r.Revision-1 {
			return fmt.Errorf("revision is %d, not %d: %w", revision, r.Revision-1, errdefs.ErrAborted)
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO port_ranges
			(host_id, service, first_port, last_port, internal_port, revision) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (host_id, service) DO UPDATE SET first_port = excluded.first_port,
			last_port = excluded.last_port, internal_port = excluded.internal_port, revision = excluded.revision`,
			hostID, r.Service, r.First, r.Last, r.Internal, r.Revision)
		return err
	})
	if err != nil {
		return fmt.Errorf("set port range %s: %w", r.Service, err)
	}
	return nil
}
