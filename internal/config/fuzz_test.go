package config_test

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/remotegpu/remotegpu/internal/config"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// Whatever stands in the file is refused, or is a configuration that can be
// written down and read again.
func FuzzLoad(f *testing.F) {
	text, err := config.Default().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	for _, text := range []string{
		"", "version = 1", "version = 2", "nonsense", "[node]\nname = 1", "[node]\nstate_dir = \"relative\"", "[unknown]\na = 1", "version = 1\nversion = 1",
		"[operations]\nworkers = 0", "[operations]\nkeep_days = 9077000", "[operations]\nkeep_days = 999999999999", "[logs]\nmax_size = -1", "[network]\nrange = \"10.0.0.0/40\"", "[api]\nlisten = \"::1:80\"",
		"[node]\nlabels = {a = \"b\"}", "[mounts]\nallowed_roots = [\"/a\", \"b\"]", "\xff", "[containerd]\naddress = \"\\u0000\"",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "remotegpud.toml")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := config.Load(path, false)
		if err != nil {
			if p := problem.Of(err); p.Reason != problem.ConfigInvalid {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		if cfg.Operations.Retention <= 0 || cfg.Operations.Workers < 1 {
			t.Errorf("%q: taken, with %+v", text, cfg.Operations)
		}
		again, err := cfg.Marshal()
		if err != nil {
			t.Fatalf("%q cannot be written: %v", text, err)
		}
		if err := os.WriteFile(path, again, 0o600); err != nil {
			t.Fatal(err)
		}
		reread, err := config.Load(path, false)
		if err != nil {
			t.Fatalf("%q is written as %q, which is refused: %v", text, again, err)
		}
		second, err := reread.Marshal()
		if err != nil || !reflect.DeepEqual(again, second) {
			t.Errorf("%q is written as\n%s\nand then as\n%s\n%v", text, again, second, err)
		}
	})
}
