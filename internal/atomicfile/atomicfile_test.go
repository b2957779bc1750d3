package atomicfile_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/remotegpu/remotegpu/internal/atomicfile"
)

func TestWriteReplacesWhole(t *testing.T) {
	t.Parallel()
	for name, write := range map[string]func(string, []byte, os.FileMode) error{
		"synced": atomicfile.Write, "unsynced": atomicfile.WriteUnsynced,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(path, []byte("something longer"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := write(path, []byte("new"), 0o640); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(path)
			if err != nil || string(text) != "new" {
				t.Errorf("it holds %q, error %v", text, err)
			}
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
				t.Errorf("mode %v, error %v", info.Mode(), err)
			}
			if err := write(filepath.Join(path, "below"), nil, 0o600); err == nil {
				t.Error("a file below a file was written")
			}
			if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
				t.Errorf("left behind: %v, error %v", entries, err)
			}
		})
	}
}
