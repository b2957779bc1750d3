package store

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"sync"

	"github.com/remotegpu/remotegpu/runtime"
)

// decodedCache bounds the number of environments that are kept decoded.
const decodedCache = 2048

// decoded keeps environments as they were last read for a list, without their
// port mappings: most of what a list costs is to read and decode the same rows
// again. A revision of an id never changes, so nothing has to be told to it.
type decoded struct {
	mu   sync.Mutex
	envs map[string]*runtime.Environment // by id
}

func (d *decoded) get(id string, revision int64) *runtime.Environment {
	d.mu.Lock()
	defer d.mu.Unlock()
	if env := d.envs[id]; env != nil && env.Revision == revision {
		return env
	}
	return nil
}

func (d *decoded) put(env *runtime.Environment) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.envs == nil || len(d.envs) >= decodedCache {
		d.envs = make(map[string]*runtime.Environment)
	}
	d.envs[env.ID] = env
}

// listed is a row of a list.
type listed struct {
	seq      int64
	id       string
	revision int64
	env      *runtime.Environment
}

// Environments implements runtime.Store.
func (s *Store) Environments(ctx context.Context, filter runtime.Filter) ([]*runtime.Environment, string, error) {
	query, args, err := listQuery(filter)
	if err != nil {
		return nil, "", err
	}
	var (
		found []*runtime.Environment
		next  string
	)
	err = s.db.Read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		rows, err := scanListed(ctx, tx, query, args)
		if err != nil {
			return err
		}
		if err := s.decodeListed(ctx, tx, rows); err != nil {
			return err
		}
		found, next = choose(filter, rows)
		if err := addMappings(ctx, tx, found); err != nil {
			return err
		}
		return addLeases(ctx, tx, found)
	})
	if err != nil {
		return nil, "", fmt.Errorf("list environments: %w", err)
	}
	return found, next, nil
}

// listQuery selects the rows of a page and one more, which tells whether there
// is another page. Labels are looked at later: then it selects all.
func listQuery(filter runtime.Filter) (query string, args []any, err error) {
	where := []string{"state != 'deleted'"}
	add := func(condition string, values ...any) {
		where = append(where, condition)
		args = append(args, values...)
	}
	if filter.Project != "" {
		add("project = ?", filter.Project)
	}
	if len(filter.States) > 0 {
		var states []any
		for _, state := range filter.States {
			states = append(states, state)
		}
		add("state IN ("+placeholders(len(states))+")", states...)
	}
	if filter.After != "" {
		var seq int64
		if err := parseCursor(filter.After, "e", &seq); err != nil {
			return "", nil, err
		}
		add("seq > ?", seq)
	}
	query = "SELECT seq, id, revision FROM environments WHERE " + strings.Join(where, " AND ") + " ORDER BY seq"
	if filter.Limit > 0 && len(filter.Labels) == 0 {
		query += " LIMIT ?"
		args = append(args, filter.Limit+1)
	}
	return query, args, nil
}

func scanListed(ctx context.Context, tx *sql.Tx, query string, args []any) ([]*listed, error) {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells what went wrong
	var found []*listed
	for rows.Next() {
		row := new(listed)
		if err := rows.Scan(&row.seq, &row.id, &row.revision); err != nil {
			return nil, err
		}
		found = append(found, row)
	}
	return found, rows.Err()
}

// decodeListed fills in the environments: those that are kept from before, and
// the others in one query.
func (s *Store) decodeListed(ctx context.Context, tx *sql.Tx, rows []*listed) error {
	var missing []int64
	bySeq := make(map[int64]*listed)
	for _, row := range rows {
		if row.env = s.decoded.get(row.id, row.revision); row.env == nil {
			missing = append(missing, row.seq)
			bySeq[row.seq] = row
		}
	}
	if len(missing) == 0 {
		return nil
	}
	list, err := toJSON(missing)
	if err != nil {
		return err
	}
	found, err := tx.QueryContext(ctx, "SELECT "+environmentColumns+
		", seq FROM environments WHERE seq IN (SELECT value FROM json_each(?))", list)
	if err != nil {
		return err
	}
	defer found.Close() //nolint:errcheck // found.Err tells what went wrong
	for found.Next() {
		row := new(environmentRow)
		if err := row.scan(found); err != nil {
			return err
		}
		env, err := row.decode()
		if err != nil {
			return err
		}
		s.decoded.put(env)
		bySeq[row.seq].env = env
	}
	return found.Err()
}

// choose takes a page of rows, each environment as a copy of its own, and the
// cursor of the next page.
func choose(filter runtime.Filter, rows []*listed) (found []*runtime.Environment, next string) {
	var last int64
	for _, row := range rows {
		if len(filter.Labels) > 0 && !filter.Labels.Matches(row.env.Labels) {
			continue
		}
		if filter.Limit > 0 && len(found) == filter.Limit {
			return found, cursor("e", last)
		}
		env := *row.env
		found, last = append(found, &env), row.seq
	}
	return found, ""
}

const selectHeldOfMany = "SELECT " + mappingColumns + ` FROM port_mappings
	WHERE env_id IN (SELECT value FROM json_each(?)) AND status IN ('reserved', 'active') ORDER BY seq`

// addMappings reads the mappings of a page of environments in one query.
func addMappings(ctx context.Context, tx *sql.Tx, envs []*runtime.Environment) error {
	if len(envs) == 0 {
		return nil
	}
	ids := make([]string, len(envs))
	byID := make(map[string]*runtime.Environment, len(envs))
	for i, env := range envs {
		ids[i], byID[env.ID] = env.ID, env
	}
	list, err := toJSON(ids)
	if err != nil {
		return err
	}
	mappings, err := queryMappings(ctx, tx, selectHeldOfMany, list)
	if err != nil {
		return err
	}
	for _, m := range mappings {
		env := byID[m.EnvID]
		env.Ports = append(env.Ports, m)
	}
	return nil
}

// addLeases reads the GPU leases of a page of environments in one query: of all
// that are held, since a host has few GPUs.
func addLeases(ctx context.Context, tx *sql.Tx, envs []*runtime.Environment) error {
	if len(envs) == 0 {
		return nil
	}
	leases, err := queryLeases(ctx, tx, "l.released_at = 0")
	if err != nil {
		return err
	}
	for _, l := range leases {
		for _, env := range envs {
			if env.ID == l.EnvID {
				env.GPUs = append(env.GPUs, l)
			}
		}
	}
	return nil
}
