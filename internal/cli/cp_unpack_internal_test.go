package cli

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// White box: each run through the public face starts a server.

// FuzzUnpack takes any bytes for what a node sends: nothing is made or changed
// outside of the directory that is copied to.
func FuzzUnpack(f *testing.F) {
	archive := func(headers ...tar.Header) []byte {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		for _, header := range headers {
			if err := w.WriteHeader(&header); err != nil {
				f.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		return out.Bytes()
	}
	f.Add(archive(tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, tar.Header{Name: "d/x", Typeflag: tar.TypeReg, Mode: 0o4755}), false)
	f.Add(archive(tar.Header{Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: ".."}, tar.Header{Name: "d/l/outside/file", Typeflag: tar.TypeReg}), false)
	f.Add(archive(tar.Header{Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "../outside"}, tar.Header{Name: "d/h", Typeflag: tar.TypeLink, Linkname: "d/l/file"}), true)
	f.Add(archive(tar.Header{Name: "d/../outside/file", Typeflag: tar.TypeReg}, tar.Header{Name: "/d", Typeflag: tar.TypeDir}), true)
	f.Fuzz(func(t *testing.T, data []byte, archive bool) {
		if len(data) > 1<<20 {
			return
		}
		base := t.TempDir()
		outside := filepath.Join(base, "outside")
		if err := os.Mkdir(outside, 0o700); err != nil {
			t.Fatal(err)
		}
		kept := filepath.Join(outside, "file")
		if err := os.WriteFile(kept, []byte("kept"), 0o600); err != nil {
			t.Fatal(err)
		}
		before, err := os.Stat(kept)
		if err != nil {
			t.Fatal(err)
		}
		u := &localUnpack{prefix: "d", flags: &copyFlags{archive: archive}, umask: umask()}
		_ = u.directory(localTarget{path: filepath.Join(base, "to")}, bytes.NewReader(data)) // most of it is no archive
		text, err := os.ReadFile(kept)
		after, gone := os.Stat(kept)
		if err != nil || gone != nil || string(text) != "kept" || after.Mode() != before.Mode() || !after.ModTime().Equal(before.ModTime()) {
			t.Errorf("the file outside is %q, %+v, %v %v", text, after, err, gone)
		}
		for dir, want := range map[string]int{base: 2, outside: 1} {
			if entries, err := os.ReadDir(dir); err != nil || len(entries) > want {
				t.Errorf("in %s there is %v, %v", dir, entries, err)
			}
		}
		_ = os.Chmod(filepath.Join(base, "to"), 0o700) // it may have made it unreadable
	})
}

// removing removes something as soon as its name is written.
type removing struct {
	bytes.Buffer
	dir string
}

// Write implements io.Writer.
func (r *removing) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("from/gone/")) {
		if err := os.RemoveAll(r.dir); err != nil {
			return 0, err
		}
	}
	return r.Buffer.Write(p)
}

// What disappears while it is packed does not end an upload.
func TestPackOfWhatDisappears(t *testing.T) {
	from := filepath.Join(t.TempDir(), "from")
	out := &removing{dir: filepath.Join(from, "gone")}
	if err := os.MkdirAll(filepath.Join(out.dir, "deeper"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(from, "kept"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(from)
	if err != nil {
		t.Fatal(err)
	}
	pack := &localPack{root: from, name: "from", info: info}
	if err := pack.write(out); err != nil {
		t.Fatal(err)
	}
	var names []string
	for reader := tar.NewReader(&out.Buffer); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, header.Name)
	}
	if want := []string{"from/", "from/gone/", "from/kept"}; !slices.Equal(names, want) {
		t.Errorf("packed %q, want %q", names, want)
	}
}
