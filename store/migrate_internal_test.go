package store

import (
	"context"
	"database/sql"
	"io/fs"
	"log/slog"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/remotegpu/remotegpu/internal/sqlite"
	"github.com/remotegpu/remotegpu/network/port"
)

// Mappings that were released before their environment's name was kept with
// them get it as long as it is known. White-box: the older schema is needed.
func TestReleasedMappingsGetTheirName(t *testing.T) {
	path, older := filepath.Join(t.TempDir(), "db"), fstest.MapFS{}
	scripts, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, script := range scripts {
		if name := filepath.Base(script); name < "0012" {
			text, err := migrations.ReadFile(script)
			if err != nil {
				t.Fatal(err)
			}
			older[name] = &fstest.MapFile{Data: text}
		}
	}
	log := slog.New(slog.DiscardHandler)
	db, err := sqlite.Open(t.Context(), sqlite.Config{Path: path, Migrations: older, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Write(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `
			INSERT INTO environments (id, name, project, node, labels, revision, spec, state, held, address, ready, operation, detail,
				created_at, updated_at, started_at)
				VALUES ('01A', 'old', 'default', '', '{}', 1, '{}', 'deleted', 0, '', 0, '', '{}', 1, 1, 1);
			INSERT INTO port_mappings (id, env_id, project, host_id, service, internal_port, external_port, protocol, description, status,
				created_at, updated_at, released_at, revision)
				VALUES ('01P', '01A', 'default', 'h', 'ssh', 22, 22000, 'tcp', '', 'released', 1, 2, 2, 2),
				('01Q', '01B', 'default', 'h', 'ssh', 22, 22001, 'tcp', '', 'released', 1, 2, 2, 2)`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), path, log)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	found, _, err := s.PortMappings(t.Context(), "h", port.Filter{IncludeReleased: true})
	if err != nil || len(found) != 2 || found[0].EnvName != "old" || found[1].EnvName != "" {
		t.Errorf("%+v, %v", found, err)
	}
}
