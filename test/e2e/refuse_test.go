package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	_ "github.com/mattn/go-sqlite3" // the test plays a newer release

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// What starting again cannot help is refused with 78 (EX_CONFIG), what it may
// with 1, and nothing is changed. SIGHUP ends nothing.
func TestRefusedStarts(t *testing.T) {
	n := Start(t, usual, "")
	ends := func(code int, what, config string, wants ...string) {
		t.Helper()
		cmd := n.command(t, testutil.Program("remotegpud"), "--config", config)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != code {
			t.Errorf("%s: ended with %v, want %d\n%s", what, err, code, out)
		}
		for _, want := range append(wants, "Try: ") {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s: %q is not in\n%s", what, want, out)
			}
		}
	}
	refused := func(what, config string, wants ...string) { t.Helper(); ends(78, what, config, wants...) }
	if err := n.daemon.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "SIGHUP to be told of", func() bool { return strings.Contains(n.Log(), "SIGHUP") })
	// The first may be about to end: a supervisor is to try again.
	ends(1, "a second daemon", n.config, "another remotegpud works in "+n.Dir+"/state")
	n.Must(t, "env", "create", "one", "--image", n.Image) // the first is unharmed
	n.Must(t, "env", "rm", "--force", "--grace", "0s", "one")

	text, err := os.ReadFile(n.config)
	if err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(n.Dir, "broken.toml")
	for what, change := range map[string]string{"unknown key": "[log]\ncolour = 1\n", "no TOML": "[log\n", "no level": "[log]\nlevel = \"loud\"\n"} {
		if err := os.WriteFile(broken, []byte(string(text)+change), 0o600); err != nil {
			t.Fatal(err)
		}
		refused(what, broken)
	}
	refused("a configuration that is not there", filepath.Join(n.Dir, "absent.toml"))

	n.Stop(t, syscall.SIGTERM)
	path := filepath.Join(n.Dir, "state", "node.db")
	version := userVersion(t, path, 0)
	userVersion(t, path, version+1000)
	before := digestOf(t, path)
	refused("a newer database", n.config,
		fmt.Sprintf("has schema version %d, this program knows versions up to %d", version+1000, version))
	if !bytes.Equal(before, digestOf(t, path)) {
		t.Error("the newer database was changed")
	}
	userVersion(t, path, version)
	n.Run(t)
}

// userVersion reads the version of a database's schema, after it was set when
// set is not 0.
func userVersion(t *testing.T, path string, set int) (version int) {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	if set != 0 {
		if _, err := db.ExecContext(t.Context(), fmt.Sprintf("PRAGMA user_version = %d", set)); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.QueryRowContext(t.Context(), "PRAGMA user_version").Scan(&version); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return version
}

func digestOf(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return sum[:]
}
