package rootfs_test

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/rootfs"
)

// FuzzExtract takes any bytes for an archive: whatever they are, nothing is
// made outside of the directory, no device and nothing with a bit that was not
// asked for, and every refusal has a reason.
func FuzzExtract(f *testing.F) {
	f.Add(archive(f, file("a/b", "text"), file("../x", "x")), true)
	f.Add(archive(f, entry{Header: tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/"}}, file("l/x", "x")), false)
	f.Add(archive(f, file("f", "x"), entry{Header: tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "f"}}, file("f/", "")), true)
	f.Add(archive(f, entry{Header: tar.Header{Name: "dev", Typeflag: tar.TypeBlock, Devmajor: 8}}), true)
	f.Add(archive(f, entry{Header: tar.Header{Name: "s", Mode: 0o6777, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}, text: "x"}), false)
	f.Fuzz(func(t *testing.T, data []byte, overwrite bool) {
		if len(data) > 1<<20 {
			return
		}
		base := t.TempDir()
		for _, dir := range []string{"root/to", "outside"} {
			if err := os.MkdirAll(filepath.Join(base, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		root, err := rootfs.Open(filepath.Join(base, "root"))
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		how := mine()
		how.NoOverwrite = !overwrite
		if _, err := root.Extract(t.Context(), "to", bytes.NewReader(data), how); err != nil && problem.Of(err).Reason == problem.Internal {
			t.Errorf("%v has no reason", err)
		}
		for _, place := range []string{base, filepath.Join(base, "root"), filepath.Join(base, "outside")} {
			entries, err := os.ReadDir(place)
			if err != nil || len(entries) != map[string]int{base: 2, filepath.Join(base, "root"): 1}[place] {
				t.Errorf("in %s there is %v %v", place, entries, err)
			}
		}
		_ = filepath.WalkDir(filepath.Join(base, "root", "to"), func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				t.Error(err)
				return fs.SkipAll
			}
			if mode := entry.Type(); mode&(fs.ModeDevice|fs.ModeSocket) != 0 {
				t.Errorf("%s is %v", path, mode)
			}
			if info, err := entry.Info(); err == nil && info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
				t.Errorf("%s is %v", path, info.Mode())
			}
			return nil
		})
	})
}
