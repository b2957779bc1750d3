package store

import (
	"context"
	"database/sql"
	"log/slog"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

var (
	// scan is a step that reads all of a table that grows with time, in whatever
	// order.
	scan = regexp.MustCompile(`^SCAN (operations|port_mappings|port_mapping_terms|environments|environment_events|gpu_leases|l)\b`)
	// living is one that reads all that is held: that is few.
	living = regexp.MustCompile(` INDEX (environments_living|gpu_leases_held)\b`)
)

// A query of what is kept as history reads no more than it needs. White-box: that
// is seen only by what SQLite means to do. Who adds a query of one of these tables adds
// it here.
func TestNoQueryScansHistory(t *testing.T) {
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	type query struct {
		text string
		args []any
		want string // an index that must be used; "": any
		sort bool   // sorts what it has found: that is few
	}
	queries := map[string]query{
		"pending operations":           {text: selectPending, sort: true},
		"who needs a snapshot":         {text: selectSnapshotUses, want: "operations_state", sort: true},
		"operation by request":         {text: "SELECT " + operationColumns + " FROM operations WHERE project = ? AND request_id = ? AND request_id != ''", want: "operations_request"},
		"forget operations":            {text: purgeOperations, want: "operations_finished"},
		"ports of an environment":      {text: selectHeld, want: "port_mappings_env", sort: true},
		"ports of a page":              {text: selectHeldOfMany, want: "port_mappings_env", sort: true},
		"release ports on a host":      {text: markedMappings + releaseOfHost, want: "port_mappings_env"},
		"release ports":                {text: markedMappings + release, want: "port_mappings_env"},
		"release some ports":           {text: markedMappings + releaseListed, want: "port_mappings_env"},
		"keep terms of a port":         {text: keepTerms, want: "(id=?)"},
		"forget terms of a port":       {text: dropTerms, want: "port_mapping_terms_mapping"},
		"terms of ports at a time":     {text: selectTerms, want: "port_mapping_terms_mapping"},
		"forget ports":                 {text: purgeMappings, want: "port_mappings_released"},
		"history of an environment":    {text: selectHistory, want: "environment_events_env"},
		"forget the oldest of history": {text: dropHistory, want: "environment_events_env"},
		"forget history":               {text: purgeEvents, want: "environments_deleted"},
		"forget environments":          {text: purgeEnvironments, want: "environments_deleted"},
		"environment by name":          {text: "SELECT " + environmentColumns + " FROM environments WHERE state != 'deleted' AND project = ? AND name = ?", want: "environments_name"},
		"held leases":                  {text: selectLeases + "l.released_at = 0" + leasesOrder, want: "gpu_leases_held", sort: true},
		"leases of an environment":     {text: selectLeases + "l.env_id = ? AND l.released_at = 0" + leasesOrder, want: "gpu_leases_env", sort: true},
		"end leases":                   {text: endLease + " WHERE env_id = ? AND released_at = 0", want: "gpu_leases_env"},
		"forget leases":                {text: purgeLeases, want: "gpu_leases_released"},
	}
	for name, uuid := range map[string]string{"leases": "", "leases of a GPU": "GPU-1"} {
		q := query{want: map[string]string{"": "INTEGER PRIMARY KEY", "GPU-1": "gpu_leases_gpu"}[uuid]}
		q.text, q.args = leasesQuery(uuid, 7, 10)
		queries[name] = q
	}
	after := cursor("o", 7)
	for name, list := range map[string]struct {
		filter operation.Filter
		want   string
		sort   bool
	}{
		"project":            {operation.Filter{Project: "p"}, "operations_project", false},
		"state":              {operation.Filter{States: []operation.State{operation.Failed}}, "operations_state", false},
		"kind":               {operation.Filter{Kinds: []string{"k"}}, "operations_kind", false},
		"kinds":              {operation.Filter{Kinds: []string{"k", "l"}}, "operations_kind", true},
		"target":             {operation.Filter{Target: "t"}, "operations_target", false},
		"kind of a project":  {operation.Filter{Project: "p", Kinds: []string{"k"}}, "operations_kind", false},
		"target and kind":    {operation.Filter{Project: "p", Target: "t", Kinds: []string{"k"}}, "operations_target", false},
		"state of a project": {operation.Filter{Project: "p", States: []operation.State{operation.Failed}}, "operations_project", false},
		"pending of a project": {
			operation.Filter{Project: "p", States: []operation.State{operation.Queued, operation.Running}}, "operations_", true,
		},
	} {
		list.filter.Limit = 10
		for page, after := range map[string]string{"": "", ", next page": after} {
			list.filter.After = after
			q := query{want: list.want, sort: list.sort}
			if q.text, q.args, err = operationsQuery(list.filter); err != nil {
				t.Fatal(err)
			}
			queries["operations by "+name+page] = q
		}
	}
	for name, list := range map[string]struct {
		filter port.Filter
		want   string
		sort   bool
	}{
		"held":                  {port.Filter{}, "port_mappings_host", true},
		"held of a project":     {port.Filter{Project: "p"}, "port_mappings_host", true},
		"holder of a port":      {port.Filter{External: 9, Protocol: port.TCP}, "port_mappings_held", false},
		"all":                   {port.Filter{IncludeReleased: true}, "port_mappings_history", false},
		"all of a port":         {port.Filter{IncludeReleased: true, External: 9, Protocol: port.TCP}, "port_mappings_history", false},
		"of a port at a time":   {port.Filter{External: 9, At: time.Unix(9, 0)}, "port_mappings_history", false},
		"at a time":             {port.Filter{At: time.Unix(9, 0)}, "port_mappings_history", false},
		"all of an environment": {port.Filter{IncludeReleased: true, EnvID: "e"}, "port_mappings_env", true},
		"all of a former name":  {port.Filter{IncludeReleased: true, EnvName: "n", Project: "p"}, "port_mappings_named", true},
		"one":                   {port.Filter{IncludeReleased: true, ID: "i"}, "(id=?)", false},
		"released lately":       {port.Filter{ReleasedSince: time.Unix(9, 0)}, "port_mappings_released", true},
	} {
		list.filter.Limit = 10
		for page, after := range map[string]string{"": "", ", next page": cursor("p", 9, 7)} {
			list.filter.After = after
			q := query{want: list.want, sort: list.sort}
			if q.text, q.args, err = mappingsQuery("h", list.filter); err != nil {
				t.Fatal(err)
			}
			queries["ports: "+name+page] = q
		}
	}
	for name, filter := range map[string]runtime.Filter{
		"all": {}, "project": {Project: "p"}, "state": {States: []runtime.State{runtime.Running}},
		"page": {Project: "p", States: []runtime.State{runtime.Running, runtime.Stopped}, After: cursor("e", 7), Limit: 10},
	} {
		q := query{sort: true}
		if q.text, q.args, err = listQuery(filter); err != nil {
			t.Fatal(err)
		}
		queries["environments by "+name] = q
	}
	for name, q := range queries {
		steps := s.plan(t, q.text, q.args)
		whole := strings.Join(steps, "; ")
		for _, step := range steps {
			if scan.MatchString(step) && !living.MatchString(step) {
				t.Errorf("%s: it reads all: %s", name, whole)
			}
		}
		if !strings.Contains(whole, q.want) {
			t.Errorf("%s: %s is not used: %s", name, q.want, whole)
		}
		if !q.sort && strings.Contains(whole, "TEMP B-TREE FOR ORDER BY") {
			t.Errorf("%s: it sorts all that it finds: %s", name, whole)
		}
	}
}

// plan is how SQLite means to answer a query.
func (s *Store) plan(t *testing.T, query string, args []any) (steps []string) {
	t.Helper()
	if args == nil { // plans do not depend on them
		args = make([]any, max(strings.Count(query, "?"), 1))
		for i := len(args); i > 0 && strings.Contains(query, "?1"); i-- {
			if strings.Contains(query, "?"+string(rune('0'+i))) {
				args = args[:i]
				break
			}
		}
	}
	err := s.db.Read(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, "EXPLAIN QUERY PLAN "+query, args[:min(len(args), strings.Count(query, "?"))]...)
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
			steps = append(steps, detail)
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return steps
}
