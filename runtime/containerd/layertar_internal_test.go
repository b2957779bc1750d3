package containerd

// White box: a directory that is too large for the bound that is in force takes
// long to make.

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// A tenant decides how many files are in a directory: no more are kept in memory
// than the bound says, of a directory and those that it lies in, and who has left
// is not read for.
func TestLayerOfManyFiles(t *testing.T) {
	dir := t.TempDir()
	var want []string
	for _, path := range []string{"a", "a/b", "c"} {
		if err := os.Mkdir(filepath.Join(dir, path), 0o755); err != nil {
			t.Fatal(err)
		}
		want = append(want, path+"/")
		for i := range 3 * namesAtOnce / 2 {
			file := filepath.Join(path, fmt.Sprint("file", i))
			if err := os.WriteFile(filepath.Join(dir, file), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			want = append(want, file)
		}
	}
	write := func(most int) (names []string, err error) {
		var archive bytes.Buffer
		l := newLayerWriter(&archive, []string{dir})
		l.most = most
		if err := l.directory(t.Context(), "", []string{dir}, nil); err != nil {
			return nil, err
		}
		for reader := tar.NewReader(&archive); ; {
			header, err := reader.Next()
			if err != nil {
				return names, nil //nolint:nilerr // there is no end mark
			}
			names = append(names, header.Name)
		}
	}
	// Kept at once: of the directory itself 2 names, of a 1+n, of b in it n.
	exact := 2 + 1 + 2*(3*namesAtOnce/2)
	names, err := write(exact)
	slices.Sort(names)
	slices.Sort(want)
	if err != nil || !slices.Equal(names, want) {
		t.Errorf("%d names, want %d, %v", len(names), len(want), err)
	}
	_, err = write(exact - 1)
	if p := problem.Of(err); p == nil || p.Reason != problem.SnapshotNotCopyable || !strings.HasPrefix(p.Message, "/a/b: ") || p.Hint == "" {
		t.Errorf("one too many: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := newLayerWriter(io.Discard, []string{dir}).directory(gone, "", []string{t.TempDir()}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("for one who has left: %v", err)
	}
}
