package trusted_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/internal/trusted"
)

func TestPrograms(t *testing.T) {
	testutil.Require(t, testutil.Root)
	dir := t.TempDir()
	write := func(name string, mode os.FileMode, uid int) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{os.WriteFile(path, nil, 0o600), os.Chmod(path, mode), os.Chown(path, uid, 0)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	good := write("good", 0o755, 0)
	theirs := write("theirs/program", 0o755, 0)
	through := filepath.Join(dir, "theirs", "link") // they choose what it is a link to
	for _, err := range []error{os.Symlink(good, through), os.Symlink(good, filepath.Join(dir, "link")), os.Chown(filepath.Dir(theirs), 1000, 0)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]struct{ program, library bool }{
		good:                           {true, true},
		filepath.Join(dir, "link"):     {true, true},
		write("plain", 0o644, 0):       {false, true},
		write("another", 0o755, 1000):  {},
		write("group", 0o775, 0):       {},
		write("everybody", 0o757, 0):   {},
		theirs:                         {},
		through:                        {},
		dir:                            {},
		"good":                         {},
		filepath.Join(dir, "missing"):  {},
		filepath.Join(good, "below"):   {},
		filepath.Join(dir, "x", "y"):   {},
		"/proc/self/root" + dir + "/x": {},
	} {
		if err := trusted.Program(path); (err == nil) != want.program {
			t.Errorf("program %s: %v", path, err)
		}
		if err := trusted.Library(path); (err == nil) != want.library {
			t.Errorf("library %s: %v", path, err)
		}
	}
	if err := trusted.Program(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one that is not there: %v", err)
	}
}
