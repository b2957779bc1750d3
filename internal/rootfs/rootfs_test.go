package rootfs_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/rootfs"
	"github.com/remotegpu/remotegpu/internal/testutil"
)

var past = time.Unix(1_000_000_000, 123_000_000)

// tree is a root below a directory that holds something to escape to.
type tree struct {
	*rootfs.Root
	dir     string // the root
	outside string // beside it
}

func newTree(t *testing.T) *tree {
	t.Helper()
	base := t.TempDir()
	tr := &tree{dir: filepath.Join(base, "root"), outside: filepath.Join(base, "outside")}
	for _, dir := range []string{tr.dir, tr.outside, tr.path("etc"), tr.path("to")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tr.write(t, "etc/passwd", "root:x:0:0::/:\napp:x:1000:1000::/:\n")
	if err := os.WriteFile(filepath.Join(tr.outside, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := rootfs.Open(tr.dir)
	if err != nil {
		t.Fatal(err)
	}
	tr.Root = root
	before := descriptors(t)
	t.Cleanup(func() {
		if now := descriptors(t); now != before {
			t.Errorf("%d descriptors are open, %d were", now, before)
		}
		if err := root.Close(); err != nil {
			t.Error(err)
		}
		if left := tr.find(t, ".remotegpu-copy-"); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		if text, err := os.ReadFile(filepath.Join(tr.outside, "secret")); err != nil || string(text) != "secret" {
			t.Errorf("what is outside has changed: %q %v", text, err)
		}
		if entries, _ := os.ReadDir(tr.outside); len(entries) != 1 {
			t.Errorf("outside there is %v", entries)
		}
	})
	return tr
}

func descriptors(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

func (tr *tree) path(name string) string { return filepath.Join(tr.dir, name) }

func (tr *tree) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(tr.path(name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (tr *tree) link(t *testing.T, target, name string) {
	t.Helper()
	if err := os.Symlink(target, tr.path(name)); err != nil {
		t.Fatal(err)
	}
}

func (tr *tree) read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(tr.path(name))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// find returns what has a part in its name.
func (tr *tree) find(t *testing.T, part string) (found []string) {
	t.Helper()
	_ = filepath.WalkDir(tr.dir, func(path string, _ fs.DirEntry, _ error) error {
		if strings.Contains(filepath.Base(path), part) {
			found = append(found, path)
		}
		return nil
	})
	return found
}

// file is an entry of an archive; a directory when its name ends with a slash.
func file(name, text string) entry {
	return entry{Header: tar.Header{Name: name, Mode: 0o644}, text: text}
}

type entry struct {
	tar.Header
	text string
}

func archive(tb testing.TB, entries ...entry) []byte {
	tb.Helper()
	var buffer bytes.Buffer
	writer := tar.NewWriter(&buffer)
	for _, e := range entries {
		header := e.Header
		header.Size, header.Format = int64(len(e.text)), tar.FormatPAX
		switch {
		case header.Typeflag != 0:
		case strings.HasSuffix(header.Name, "/"):
			header.Typeflag = tar.TypeDir
			if header.Mode == 0 || header.Mode == 0o644 {
				header.Mode = 0o755
			}
		default:
			header.Typeflag = tar.TypeReg
		}
		if header.ModTime.IsZero() {
			header.ModTime = past
		}
		if err := writer.WriteHeader(&header); err != nil {
			tb.Fatal(err)
		}
		if _, err := io.WriteString(writer, e.text); err != nil {
			tb.Fatal(err)
		}
	}
	if err := writer.Close(); err != nil {
		tb.Fatal(err)
	}
	return buffer.Bytes()
}

// mine are options that anybody may use.
func mine() rootfs.Extraction { return rootfs.Extraction{UID: os.Getuid(), GID: os.Getgid()} }

func (tr *tree) extract(t *testing.T, dir string, how rootfs.Extraction, entries ...entry) (rootfs.Extracted, error) {
	t.Helper()
	return tr.Extract(t.Context(), dir, bytes.NewReader(archive(t, entries...)), how)
}

func wantReason(t *testing.T, what string, err error, reason problem.Reason) {
	t.Helper()
	if p := problem.Of(err); p == nil || p.Reason != reason {
		t.Errorf("%s: %v, want %s", what, err, reason)
	} else if p.Hint == "" && reason != problem.FieldInvalid {
		t.Errorf("%s: %v has no hint", what, err)
	}
}

func TestExtract(t *testing.T) {
	tr := newTree(t)
	tr.write(t, "to/old", "old")
	if err := os.Chmod(tr.path("to"), fs.ModeSticky|0o777); err != nil {
		t.Fatal(err)
	}
	open, err := os.Open(tr.path("to/old"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	for _, named := range []bool{false, true} {
		if named {
			tr.WriteNamed()
		}
		big := strings.Repeat("0123456789", 100_000)
		done, err := tr.extract(t, "/to", mine(),
			file("./", ""), file("old", "new"), entry{Header: tar.Header{Name: "dir/", Mode: 0o3750}}, file("dir/a", big),
			entry{Header: tar.Header{Name: "dir/link", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}},
			entry{Header: tar.Header{Name: "dir/hard", Typeflag: tar.TypeLink, Linkname: "dir/a"}},
			entry{Header: tar.Header{Name: "dir/fifo", Typeflag: tar.TypeFifo, Mode: 0o640}},
			entry{Header: tar.Header{Name: "dir/setuid", Mode: 0o6755}},
			file("/absent/parent/b", "b"))
		if err != nil || done.Entries != 8 || done.Bytes != int64(len(big)+4) {
			t.Fatalf("named %t: %+v %v", named, done, err)
		}
		for name, want := range map[string]string{"to/old": "new", "to/dir/a": big, "to/dir/hard": big, "to/absent/parent/b": "b"} {
			if got := tr.read(t, name); got != want {
				t.Errorf("%s: %.40q", name, got)
			}
		}
		for name, want := range map[string]fs.FileMode{
			"to": fs.ModeDir | fs.ModeSticky | 0o777, "to/dir": fs.ModeDir | fs.ModeSticky | 0o750, "to/dir/a": 0o644,
			"to/dir/link": fs.ModeSymlink | 0o777, "to/dir/fifo": fs.ModeNamedPipe | 0o640, "to/dir/setuid": 0o755, "to/absent": fs.ModeDir | 0o755,
		} {
			info, err := os.Lstat(tr.path(name))
			if err != nil || info.Mode() != want {
				t.Errorf("%s: %v %v, want %v", name, info.Mode(), err, want)
			} else if name != "to" && name != "to/absent" && (!named || name != "to/dir") && !info.ModTime().Equal(past) {
				t.Errorf("%s has the time %v", name, info.ModTime())
			}
		}
		a, _ := os.Stat(tr.path("to/dir/a"))
		if hard, err := os.Stat(tr.path("to/dir/hard")); err != nil || !os.SameFile(a, hard) {
			t.Errorf("the hard link is another file: %v", err)
		}
	}
	// Whoever had the old file open keeps it.
	if text, err := io.ReadAll(open); err != nil || string(text) != "old" {
		t.Errorf("the open file has %q %v", text, err)
	}
}

func TestExtractKeepsOwner(t *testing.T) {
	testutil.Require(t, testutil.Root)
	tr := newTree(t)
	entries := []entry{
		{Header: tar.Header{Name: "dir/", Mode: 0o2750, Uid: 1000, Gid: 2000}},
		{Header: tar.Header{Name: "dir/su", Mode: 0o4755, Uid: 1000, Gid: 2000, PAXRecords: map[string]string{
			"SCHILY.xattr.user.note": "a\x00b", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02", "SCHILY.xattr.trusted.overlay.opaque": "y",
		}}, text: "x"},
		{Header: tar.Header{Name: "dir/link", Typeflag: tar.TypeSymlink, Linkname: "su", Uid: 1000, Gid: 2000}},
	}
	stat := func(name string) (st unix.Stat_t) {
		t.Helper()
		if err := unix.Lstat(tr.path(name), &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	if _, err := tr.extract(t, "to", rootfs.Extraction{KeepOwner: true}, entries...); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]uint32{"to/dir": 0o2750, "to/dir/su": 0o4755, "to/dir/link": 0o777} {
		if st := stat(name); st.Uid != 1000 || st.Gid != 2000 || st.Mode&0o7777 != mode {
			t.Errorf("%s: %d:%d %o", name, st.Uid, st.Gid, st.Mode)
		}
	}
	list := make([]byte, 1024)
	if n, err := unix.Llistxattr(tr.path("to/dir/su"), list); err != nil || string(list[:n]) != "user.note\x00" {
		t.Errorf("attributes: %q %v", list[:n], err)
	}
	if _, err := tr.extract(t, "etc", rootfs.Extraction{UID: 7, GID: 8}, entries...); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]uint32{"etc/dir": 0o750, "etc/dir/su": 0o755, "etc/dir/link": 0o777} {
		if st := stat(name); st.Uid != 7 || st.Gid != 8 || st.Mode&0o7777 != mode {
			t.Errorf("%s: %d:%d %o", name, st.Uid, st.Gid, st.Mode)
		}
	}
	for _, id := range []int{-1, 1<<32 - 1, 1 << 40} {
		_, err := tr.extract(t, "to", rootfs.Extraction{KeepOwner: true}, entry{Header: tar.Header{Name: "x", Uid: id}})
		wantReason(t, fmt.Sprint(id), err, problem.ArchiveInvalid)
	}
}

// An archive cannot reach what it should not, and what is refused changes
// nothing.
func TestExtractRefuses(t *testing.T) {
	for _, test := range []struct {
		name    string
		reason  problem.Reason
		entries []entry
	}{
		{"upwards", problem.ArchiveInvalid, []entry{file("../outside/x", "x")}},
		{"upwards in the middle", problem.ArchiveInvalid, []entry{file("a/../../x", "x")}},
		{"a file as the top", problem.ArchiveInvalid, []entry{{Header: tar.Header{Name: "./", Typeflag: tar.TypeSymlink, Linkname: "/"}}}},
		{"through a link there", problem.FileConflict, []entry{file("out/x", "x")}},
		{"through a link deeper there", problem.FileConflict, []entry{file("out/a/b/x", "x")}},
		{"through a link of its own", problem.FileConflict, []entry{
			{Header: tar.Header{Name: "own", Typeflag: tar.TypeSymlink, Linkname: "/etc"}}, file("own/passwd", "x"),
		}},
		{"directory over a link", problem.FileConflict, []entry{{Header: tar.Header{Name: "out/"}}}},
		{"directory over a file", problem.FileConflict, []entry{{Header: tar.Header{Name: "file/"}}}},
		{"through a file", problem.FileConflict, []entry{file("file/x", "x")}},
		{"file over a directory", problem.FileConflict, []entry{file("dir", "x")}},
		{"link over a directory", problem.FileConflict, []entry{{Header: tar.Header{Name: "dir", Typeflag: tar.TypeSymlink, Linkname: "x"}}}},
		{"FIFO over a directory", problem.FileConflict, []entry{{Header: tar.Header{Name: "dir", Typeflag: tar.TypeFifo}}}},
		{"hard link out", problem.ArchiveInvalid, []entry{{Header: tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "../etc/passwd"}}}},
		{"hard link to what is not beneath", problem.ArchiveInvalid, []entry{{Header: tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}}}},
		{"hard link through a link", problem.FileConflict, []entry{{Header: tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "out/secret"}}}},
		{"hard link to a link", problem.ArchiveInvalid, []entry{{Header: tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "out"}}}},
		{"hard link to a directory", problem.ArchiveInvalid, []entry{{Header: tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "dir"}}}},
		{"device", problem.ArchiveInvalid, []entry{{Header: tar.Header{Name: "x", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}}},
		{"block device", problem.ArchiveInvalid, []entry{{Header: tar.Header{Name: "x", Typeflag: tar.TypeBlock, Devmajor: 8}}}},
		{"unknown type", problem.ArchiveInvalid, []entry{{Header: tar.Header{Name: "x", Typeflag: 'Z'}}}},
		{"long name", problem.ArchiveInvalid, []entry{file(strings.Repeat("x", 256), "")}},
		{"long path", problem.ArchiveInvalid, []entry{file(strings.Repeat("x/", 2100)+"x", "")}},
		{"long link", problem.ArchiveInvalid, []entry{{Header: tar.Header{Name: "x", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("x/", 2100)}}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			tr := newTree(t)
			tr.link(t, "../../outside", "to/out")
			tr.write(t, "to/file", "old")
			if err := os.Mkdir(tr.path("to/dir"), 0o755); err != nil {
				t.Fatal(err)
			}
			_, err := tr.extract(t, "/to", mine(), test.entries...)
			wantReason(t, "extract", err, test.reason)
			if _, err := os.Lstat(tr.path("to/x")); err == nil {
				t.Error("it was made")
			}
			if tr.read(t, "to/file") != "old" || !strings.HasPrefix(tr.read(t, "etc/passwd"), "root:") {
				t.Error("something has changed")
			}
		})
	}
}

func TestExtractBroken(t *testing.T) {
	tr := newTree(t)
	tr.write(t, "to/old", "old")
	whole := archive(t, file("first", "1"), file("old", strings.Repeat("x", 300_000)), file("last", "2"))
	for _, n := range []int{1, 511, 512, 1400, 2000, 2048, 200_000} {
		_, err := tr.Extract(t.Context(), "to", bytes.NewReader(whole[:n]), mine())
		wantReason(t, fmt.Sprint(n, " bytes"), err, problem.ArchiveInvalid)
	}
	gone := errors.New("the caller left")
	for _, n := range []int{0, 512, 100_000} {
		_, err := tr.Extract(t.Context(), "to", io.MultiReader(bytes.NewReader(whole[:n]), failing{gone}), mine())
		if !errors.Is(err, gone) {
			t.Errorf("%d bytes: %v, want the reader's error", n, err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	if _, err := tr.Extract(ctx, "to", bytes.NewReader(whole), mine()); !errors.Is(err, gone) {
		t.Errorf("cancelled: %v", err)
	}
	_, err := tr.Extract(t.Context(), "to", strings.NewReader(strings.Repeat("nonsense", 1000)), mine())
	wantReason(t, "nonsense", err, problem.ArchiveInvalid)
	if tr.read(t, "to/old") != "old" || tr.read(t, "to/first") != "1" {
		t.Error("the broken file was replaced, or the whole one before it was not kept")
	}
	_, err = tr.Extract(t.Context(), "to", bytes.NewReader(whole[:len(whole)-1024]), mine())
	wantReason(t, "no end", err, problem.ArchiveInvalid)
	_, err = tr.Extract(t.Context(), "to", bytes.NewReader(nil), mine())
	wantReason(t, "nothing", err, problem.ArchiveInvalid)
	if done, err := tr.extract(t, "to", mine()); err != nil || done.Entries != 0 {
		t.Errorf("an empty archive: %+v %v", done, err)
	}
}

type failing struct{ err error }

// Read implements io.Reader.
func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestExtractWithoutOverwriting(t *testing.T) {
	for _, named := range []bool{false, true} {
		tr := newTree(t)
		if named {
			tr.WriteNamed()
		}
		tr.write(t, "to/old", "old")
		tr.link(t, "nowhere", "to/link")
		how := mine()
		how.NoOverwrite = true
		for _, e := range []entry{
			file("old", "new"),
			{Header: tar.Header{Name: "old", Typeflag: tar.TypeSymlink, Linkname: "x"}},
			{Header: tar.Header{Name: "link", Typeflag: tar.TypeFifo}},
			{Header: tar.Header{Name: "link", Typeflag: tar.TypeLink, Linkname: "old"}},
		} {
			_, err := tr.extract(t, "to", how, e)
			wantReason(t, e.Name, err, problem.FileExists)
		}
		if tr.read(t, "to/old") != "old" {
			t.Error("it was overwritten")
		}
		if _, err := tr.extract(t, "/", how, file("to/", ""), file("to/new", "new")); err != nil || tr.read(t, "to/new") != "new" {
			t.Errorf("into a directory that is there: %v", err)
		}
	}
}

// Paths of the caller lead from the root, whatever links are on the way.
func TestPathsStayInRoot(t *testing.T) {
	tr := newTree(t)
	tr.link(t, "../../../../../../../../outside", "up")
	tr.link(t, "/to", "absolute")
	tr.link(t, "/etc", "to/etc")
	tr.link(t, "circle", "circle")
	for name, want := range map[string]string{
		"etc/passwd": "passwd", "/etc/passwd": "passwd", "../../etc/passwd": "passwd", "absolute/etc/passwd": "passwd", "/to/etc/../etc/./passwd": "passwd",
		"/": ".", "": ".", "..": ".", "absolute/": "absolute", "etc/.": "etc",
	} {
		info, err := tr.Stat(name, true)
		if err != nil || info.Name != want {
			t.Errorf("%q: %+v %v", name, info, err)
		}
	}
	for name, reason := range map[string]problem.Reason{
		"up": problem.FileNotFound, "up/secret": problem.FileNotFound, "../outside/secret": problem.FileNotFound, "etc/passwd/x": problem.FileNotFound,
		"circle": problem.FileNotAllowed, "a\x00b": problem.FieldInvalid, strings.Repeat("x/", 2100): problem.FieldInvalid, strings.Repeat("x", 300): problem.FieldInvalid,
	} {
		_, err := tr.Stat(name, true)
		wantReason(t, fmt.Sprintf("%.40q", name), err, reason)
		_, err = tr.extract(t, name, mine(), file("x", "x"))
		wantReason(t, fmt.Sprintf("into %.40q", name), err, reason)
	}
	if info, err := tr.Stat("up", false); err != nil || info.Type != rootfs.Link || !strings.HasSuffix(info.Target, "outside") {
		t.Errorf("the link itself: %+v %v", info, err)
	}
	_, err := tr.extract(t, "etc/passwd", mine(), file("x", "x"))
	wantReason(t, "into a file", err, problem.FileConflict)
	if _, err := tr.extract(t, "absolute", mine(), file("x", "x")); err != nil || tr.read(t, "to/x") != "x" {
		t.Errorf("into a link to a directory: %v", err)
	}
}

func (tr *tree) pack(t *testing.T, name string, follow bool) ([]tar.Header, map[string]string, rootfs.Packed, error) {
	t.Helper()
	var buffer bytes.Buffer
	done, err := tr.Pack(t.Context(), name, follow, &buffer, func(rootfs.Info) error { return nil })
	if err != nil {
		return nil, nil, done, err
	}
	var headers []tar.Header
	texts := make(map[string]string)
	for reader := tar.NewReader(&buffer); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			slices.SortFunc(headers, func(a, b tar.Header) int { return strings.Compare(a.Name, b.Name) })
			return headers, texts, done, nil
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		headers, texts[header.Name] = append(headers, *header), string(text)
	}
}

func names(headers []tar.Header) string {
	var all []string
	for _, header := range headers {
		all = append(all, header.Name)
	}
	return strings.Join(all, " ")
}

func TestPack(t *testing.T) {
	tr := newTree(t)
	tr.write(t, "to/a", "text")
	tr.link(t, "/etc/passwd", "to/link")
	tr.link(t, "../../outside", "to/out")
	if err := errors.Join(os.Link(tr.path("to/a"), tr.path("to/b")), syscall.Mkfifo(tr.path("to/fifo"), 0o600), os.Mkdir(tr.path("to/dir"), 0o750),
		os.Chtimes(tr.path("to/a"), past, past)); err != nil {
		t.Fatal(err)
	}
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(socket)
	t.Chdir(tr.path("to"))
	if err := unix.Bind(socket, &unix.SockaddrUnix{Name: "socket"}); err != nil {
		t.Fatal(err)
	}
	headers, texts, done, err := tr.pack(t, "/to", false)
	if err != nil || names(headers) != "to/ to/a to/b to/dir/ to/fifo to/link to/out" || done.Entries != 7 || done.Skipped != 1 || done.Bytes != 4 {
		t.Fatalf("%s: %+v %v", names(headers), done, err)
	}
	if texts["to/a"]+texts["to/b"] != "text" {
		t.Errorf("texts %q", texts)
	}
	first, second := headers[1], headers[2]
	if first.Typeflag != tar.TypeReg {
		first, second = second, first
	}
	if second.Typeflag != tar.TypeLink || second.Linkname != first.Name || !first.ModTime.Equal(past) || first.Mode != 0o644 || first.Uid != os.Getuid() {
		t.Errorf("%+v, %+v", first, second)
	}
	if headers[5].Linkname != "/etc/passwd" || headers[5].Typeflag != tar.TypeSymlink {
		t.Errorf("link %+v", headers[5])
	}
	for _, test := range []struct {
		name   string
		follow bool
		want   string
	}{
		{"to/link", false, "link"}, {"to/link", true, "link"}, {"to/fifo", true, "fifo"}, {"etc/.", true, "etc/ etc/passwd"},
	} {
		headers, texts, _, err := tr.pack(t, test.name, test.follow)
		if err != nil || names(headers) != test.want {
			t.Errorf("%s: %s %v", test.name, names(headers), err)
		}
		if text := texts["link"]; test.name == "to/link" && test.follow != strings.HasPrefix(text, "root:") {
			t.Errorf("follow %t: %q", test.follow, text)
		}
	}
	headers, _, _, err = tr.pack(t, "/", false)
	if err != nil || !strings.HasPrefix(names(headers), "./ etc/ etc/passwd to/ to/a") {
		t.Errorf("all: %s %v", names(headers), err)
	}
	_, _, _, err = tr.pack(t, "to/out", true)
	wantReason(t, "a link out", err, problem.FileNotFound)
	_, _, _, err = tr.pack(t, "to/socket", true)
	wantReason(t, "a socket", err, problem.FileNotAllowed)
	_, _, _, err = tr.pack(t, "nothing", true)
	wantReason(t, "nothing", err, problem.FileNotFound)
}

func TestPackBounds(t *testing.T) {
	tr := newTree(t)
	t.Chdir(tr.path("to"))
	for range 300 {
		if err := os.Mkdir("d", 0o755); err != nil {
			t.Fatal(err)
		}
		t.Chdir("d")
	}
	_, _, _, err := tr.pack(t, "/to", false)
	wantReason(t, "deep", err, problem.FileNotAllowed)
	t.Chdir(tr.dir)
	large, err := os.Create(tr.path("etc/large"))
	if err != nil {
		t.Fatal(err)
	}
	defer large.Close()
	if err := large.Truncate(1 << 40); err != nil { // it must not be read into memory
		t.Fatal(err)
	}
	enough := errors.New("enough")
	_, err = tr.Pack(t.Context(), "etc/large", false, &limited{left: 64 << 20, err: enough}, func(rootfs.Info) error { return nil })
	if !errors.Is(err, enough) {
		t.Errorf("the writer's error: %v", err)
	}
	if _, err = tr.Pack(t.Context(), "etc", false, io.Discard, func(rootfs.Info) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("the error of first: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err = tr.Pack(ctx, "etc/large", false, io.Discard, func(rootfs.Info) error { cancel(enough); return nil })
	if !errors.Is(err, enough) {
		t.Errorf("cancelled: %v", err)
	}
}

type limited struct {
	left int
	err  error
}

// Write implements io.Writer.
func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, l.err
	}
	return len(p), nil
}

// Files that change while they are read leave a stream that is whole.
func TestPackOfChangingFiles(t *testing.T) {
	for _, size := range []int64{0, 100, 300_000, 900_000} {
		tr := newTree(t)
		tr.write(t, "to/a", strings.Repeat("a", 500_000))
		tr.write(t, "to/b", "after")
		var buffer bytes.Buffer
		changed := false
		out := writerFunc(func(p []byte) (int, error) {
			if buffer.Len() > 10_000 && !changed {
				changed = true
				if err := os.Truncate(tr.path("to/a"), size); err != nil {
					t.Error(err)
				}
			}
			return buffer.Write(p)
		})
		for _, name := range []string{"to/a", "to/b"} {
			done, err := tr.Pack(t.Context(), name, false, out, func(rootfs.Info) error { return nil })
			if err != nil || name == "to/a" && done.Changed != 1 {
				t.Errorf("%d: %+v %v", size, done, err)
			}
		}
		reader := tar.NewReader(&buffer)
		header, err := reader.Next()
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, reader); err != nil || n != header.Size || n != 500_000 {
			t.Errorf("%d: %d bytes, %v", size, n, err)
		}
	}
}

type writerFunc func(p []byte) (int, error)

// Write implements io.Writer.
func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestHidden(t *testing.T) {
	tr := newTree(t)
	if err := os.MkdirAll(tr.path("data/in"), 0o755); err != nil {
		t.Fatal(err)
	}
	tr.write(t, "data/in/file", "x")
	tr.link(t, "data/in", "way")
	tr.link(t, "/data", "to/mount")
	tr.Hide("to/mount", "/absent")
	for _, name := range []string{"data", "data/in", "data/in/file", "way", "/to/mount/in/file"} {
		_, err := tr.Stat(name, true)
		wantReason(t, name, err, problem.FileNotAllowed)
	}
	_, err := tr.extract(t, "way", mine(), file("x", "x"))
	wantReason(t, "into it", err, problem.FileNotAllowed)
	_, err = tr.extract(t, "/", mine(), file("data/in/x", "x"))
	wantReason(t, "into it from above", err, problem.FileNotAllowed)
	if headers, _, _, err := tr.pack(t, "/", false); err != nil || !strings.Contains(names(headers), "data/ etc/") {
		t.Errorf("around it: %s %v", names(headers), err)
	}
	if _, err := tr.extract(t, "/", mine(), file("database", "x")); err != nil {
		t.Errorf("beside it: %v", err)
	}
}

func TestOwner(t *testing.T) {
	tr := newTree(t)
	tr.write(t, "etc/group", "root:x:0:\nusers:x:100:\n")
	for text, want := range map[string][2]int{"": {0, 0}, "app": {1000, 1000}, "app:users": {1000, 100}, "7:8": {7, 8}, "root": {0, 0}} {
		if uid, gid, err := tr.Owner(text, true); err != nil || uid != want[0] || gid != want[1] {
			t.Errorf("%q: %d:%d %v", text, uid, gid, err)
		}
	}
	_, _, err := tr.Owner("nobody-here", true)
	wantReason(t, "unknown", err, problem.UserNotFound)
	_, _, err = tr.Owner("app", false)
	wantReason(t, "without accounts", err, problem.UserNotFound)
	if err := errors.Join(os.Remove(tr.path("etc/passwd")), syscall.Mkfifo(tr.path("etc/passwd"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if uid, _, err := tr.Owner("5", true); err != nil || uid != 5 {
		t.Errorf("with a FIFO as accounts: %d %v", uid, err)
	}
}

// What is no tar stream is told as what it is, and what is one that was cut as
// that.
func TestExtractOfWhatIsNoArchive(t *testing.T) {
	for magic, want := range map[string]string{
		"\x1f\x8b\x08": "gzip -dc", "BZh91AY&SY": "bzip2 -dc", "\xfd7zXZ\x00": "xz -dc", "\x28\xb5\x2f\xfd": "zstd -dc",
		"PK\x03\x04": "no tar archive", "garbage": "no tar archive", "": "was cut",
	} {
		for _, size := range []int{0, 5000} {
			if magic == "" && size > 0 {
				continue // as many zeros are the end of an archive
			}
			root, err := rootfs.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			_, err = root.Extract(t.Context(), "/", strings.NewReader(magic+strings.Repeat("x", size)), rootfs.Extraction{UID: os.Getuid(), GID: os.Getgid()})
			_ = root.Close()
			wantReason(t, want, err, problem.ArchiveInvalid)
			if p := problem.Of(err); !strings.Contains(p.Message+p.Hint, want) {
				t.Errorf("%q and %d bytes: %s; %s", magic, size, p.Message, p.Hint)
			}
		}
	}
}
