package cli_test

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/gen/remotegpu/v1/remotegpuv1connect"
	"github.com/remotegpu/remotegpu/internal/cli"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/rootfs"
)

func (f *fake) root() (*rootfs.Root, error) { return rootfs.Open(f.files) }

func (f *fake) stat(path string, follow bool) (*remotegpuv1.FileInfo, error) {
	root, err := f.root()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	info, err := root.Stat(path, follow)
	if p := problem.Of(err); p != nil {
		return nil, f.refuse(p)
	}
	return &remotegpuv1.FileInfo{Name: info.Name, Type: remotegpuv1.FileType(info.Type), LinkTarget: info.Target}, nil
}

// refuse is a problem as the API sends it.
func (f *fake) refuse(p *problem.Problem) error {
	return apiError(f.t, connect.CodeFailedPrecondition, string(p.Reason), p.Message, p.Field, p.Hint)
}

func (f *fake) upload(path string, noOverwrite bool, receive func() ([]byte, error)) (*remotegpuv1.UploadResult, error) {
	root, err := f.root()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	reader, writer := io.Pipe()
	go func() {
		for {
			data, err := receive()
			if err != nil {
				writer.CloseWithError(err)
				return
			}
			if len(data) > 0 {
				f.parts.Add(1)
			}
			if _, err := writer.Write(data); err != nil {
				return
			}
		}
	}()
	done, err := root.Extract(f.t.Context(), path, reader, rootfs.Extraction{UID: os.Getuid(), GID: os.Getgid(), NoOverwrite: noOverwrite})
	reader.Close()
	if p := problem.Of(err); p != nil {
		return nil, f.refuse(p)
	}
	return &remotegpuv1.UploadResult{Entries: done.Entries, Bytes: done.Bytes}, nil
}

func (f *fake) StatFile(_ context.Context, r *remotegpuv1.StatFileRequest) (*remotegpuv1.StatFileResponse, error) {
	info, err := f.stat(r.GetPath(), r.GetFollowLink())
	return &remotegpuv1.StatFileResponse{File: info}, err
}

func (f *fake) StatVolumeFile(_ context.Context, r *remotegpuv1.StatVolumeFileRequest) (*remotegpuv1.StatVolumeFileResponse, error) {
	info, err := f.stat(r.GetPath(), r.GetFollowLink())
	return &remotegpuv1.StatVolumeFileResponse{File: info}, err
}

func (f *fake) UploadFiles(_ context.Context, stream remotegpuv1connect.EnvironmentServiceUploadFilesServerStream) (*remotegpuv1.UploadFilesResponse, error) {
	first, err := stream.Receive()
	if err == nil {
		err = f.got(first.GetStart())
	}
	if err != nil {
		return nil, err
	}
	result, err := f.upload(first.GetStart().GetPath(), first.GetStart().GetNoOverwrite(), func() ([]byte, error) {
		message, err := stream.Receive()
		return message.GetData(), err
	})
	return &remotegpuv1.UploadFilesResponse{Result: result}, err
}

func (f *fake) UploadVolumeFiles(_ context.Context, stream remotegpuv1connect.VolumeServiceUploadVolumeFilesServerStream) (*remotegpuv1.UploadVolumeFilesResponse, error) {
	first, err := stream.Receive()
	if err == nil {
		err = f.got(first.GetStart())
	}
	if err != nil {
		return nil, err
	}
	result, err := f.upload(first.GetStart().GetPath(), first.GetStart().GetNoOverwrite(), func() ([]byte, error) {
		message, err := stream.Receive()
		return message.GetData(), err
	})
	return &remotegpuv1.UploadVolumeFilesResponse{Result: result}, err
}

func (f *fake) download(path string, follow bool, info func(*remotegpuv1.FileInfo) error, data func([]byte) error) (*remotegpuv1.DownloadSummary, error) {
	root, err := f.root()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	var out bytes.Buffer
	done, err := root.Pack(f.t.Context(), path, follow, &out, func(i rootfs.Info) error {
		return info(&remotegpuv1.FileInfo{Name: i.Name, Type: remotegpuv1.FileType(i.Type)})
	})
	if p := problem.Of(err); p != nil {
		return nil, f.refuse(p)
	}
	if f.cut {
		if err := data(out.Bytes()[:out.Len()/2]); err != nil {
			return nil, err
		}
		return nil, connect.NewError(connect.CodeAborted, "the environment was stopped")
	}
	for out.Len() > 0 {
		if err := data(out.Next(1000)); err != nil {
			return nil, err
		}
	}
	return &remotegpuv1.DownloadSummary{Entries: done.Entries, Bytes: done.Bytes, Skipped: done.Skipped, Changed: done.Changed}, nil
}

func (f *fake) DownloadFiles(_ context.Context, r *remotegpuv1.DownloadFilesRequest, stream remotegpuv1connect.EnvironmentServiceDownloadFilesServerStream) error {
	if err := f.got(r); err != nil {
		return err
	}
	if f.hostile != nil {
		return f.sendHostile(stream)
	}
	summary, err := f.download(r.GetPath(), r.GetFollowLink(), func(info *remotegpuv1.FileInfo) error {
		return stream.Send(&remotegpuv1.DownloadFilesResponse{Message: &remotegpuv1.DownloadFilesResponse_Info{Info: info}})
	}, func(data []byte) error {
		return stream.Send(&remotegpuv1.DownloadFilesResponse{Message: &remotegpuv1.DownloadFilesResponse_Data{Data: data}})
	})
	if err != nil {
		return err
	}
	return stream.Send(&remotegpuv1.DownloadFilesResponse{Message: &remotegpuv1.DownloadFilesResponse_Summary{Summary: summary}})
}

func (f *fake) DownloadVolumeFiles(_ context.Context, r *remotegpuv1.DownloadVolumeFilesRequest, stream remotegpuv1connect.VolumeServiceDownloadVolumeFilesServerStream) error {
	summary, err := f.download(r.GetPath(), r.GetFollowLink(), func(info *remotegpuv1.FileInfo) error {
		return stream.Send(&remotegpuv1.DownloadVolumeFilesResponse{Message: &remotegpuv1.DownloadVolumeFilesResponse_Info{Info: info}})
	}, func(data []byte) error {
		return stream.Send(&remotegpuv1.DownloadVolumeFilesResponse{Message: &remotegpuv1.DownloadVolumeFilesResponse_Data{Data: data}})
	})
	if err != nil {
		return err
	}
	return stream.Send(&remotegpuv1.DownloadVolumeFilesResponse{Message: &remotegpuv1.DownloadVolumeFilesResponse_Summary{Summary: summary}})
}

// sides are two directories with files: there, as every environment has it,
// and here, where the program runs.
func sides(t *testing.T, f *fake) (there string) {
	t.Helper()
	f.files = t.TempDir()
	t.Chdir(t.TempDir())
	for _, dir := range []string{f.files, "."} {
		for _, sub := range []string{"dir/sub", "empty"} {
			if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for name, text := range map[string]string{"file": "file", "dir/a": "a", "dir/sub/b": strings.Repeat("b", 5000)} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o640); err != nil {
				t.Fatal(err)
			}
		}
		for name, target := range map[string]string{"link": "file", "dirlink": "dir", "dangling": "made"} {
			if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return f.files
}

// listing is what is in a directory: names with the texts of plain files.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		name, _ := filepath.Rel(dir, path)
		switch {
		case err != nil || name == ".":
			return err
		case entry.Type()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(path)
			all = append(all, name+"->"+target)
		case entry.IsDir():
			all = append(all, name+"/")
		case !entry.Type().IsRegular():
			all = append(all, name+"?")
		default:
			text, _ := os.ReadFile(path)
			all = append(all, name+"="+string(text[:min(len(text), 5)]))
		}
		return nil
	})
	return strings.Join(all, " ")
}

// The rules of cp -r and docker cp hold in both directions, for environments
// and for volumes.
func TestCopyRules(t *testing.T) {
	before := "dangling->made dir/ dir/a=a dir/sub/ dir/sub/b=bbbbb dirlink->dir empty/ file=file link->file"
	for _, test := range []struct {
		from, to, flags string
		code            int
		change          string // what is there more, or otherwise; "" when it fails
	}{
		{"file", "new", "", 0, "new=file"},
		{"file", "empty", "", 0, "empty/file=file"},
		{"file", "empty/", "", 0, "empty/file=file"},
		{"file", "empty/other", "", 0, "empty/other=file"},
		{"file", "dir/a", "", 0, "dir/a=file"},
		{"file", "link", "", 0, ""}, // through it: the same text
		{"dir/a", "link", "", 0, "file=a"},
		{"dir/a", "dangling", "", 0, "made=a"},
		{"dir/a", "dirlink", "", 0, ""}, // onto itself
		{"file", "dirlink/new", "", 0, "dir/new=file"},
		{"file", "absent/", "", 3, ""},
		{"file", "absent/new", "", 4, ""},
		{"file", "file/new", "", 4, ""},
		{"absent", "new", "", 4, ""},
		{"dir/a", "dir/sub", "", 0, "dir/sub/a=a"},
		{"link", "new", "", 0, "new->file"},
		{"link", "new", "-L", 0, "new=file"},
		{"dir", "new", "", 0, "new/ new/a=a new/sub/ new/sub/b=bbbbb"},
		{"dir/", "new/", "", 0, "new/ new/a=a new/sub/ new/sub/b=bbbbb"},
		{"dir", "empty", "", 0, "empty/dir/ empty/dir/a=a empty/dir/sub/ empty/dir/sub/b=bbbbb"},
		{"dir/.", "empty", "", 0, "empty/a=a empty/sub/ empty/sub/b=bbbbb"},
		{"dir/.", "new", "", 0, "new/ new/a=a new/sub/ new/sub/b=bbbbb"},
		{"dirlink/.", "empty", "", 0, "empty/a=a empty/sub/ empty/sub/b=bbbbb"},
		{"dirlink", "new", "-L", 0, "new/ new/a=a new/sub/ new/sub/b=bbbbb"},
		{"dir", "file", "", 4, ""},
		{"file", "dir/sub/b", "--no-overwrite", 4, ""},
		{"file", "new", "--no-overwrite", 0, "new=file"},
		{"dir", "dir", "--no-overwrite", 0, "dir/dir/ dir/dir/a=a dir/dir/sub/ dir/dir/sub/b=bbbbb"},
		{"dir/.", "dir", "--no-overwrite", 4, ""},
	} {
		kinds := []string{"up env", "down env"}
		if test.to == "new" { // volumes have the same rules
			kinds = append(kinds, "up volume", "down volume")
		}
		for _, kind := range kinds {
			t.Run(kind+" "+test.flags+" "+test.from+" "+test.to, func(t *testing.T) {
				f := newFake(t)
				there := sides(t, f)
				direction, noun, _ := strings.Cut(kind, " ")
				from, to, changed := test.from, "name:/"+test.to, there
				if direction == "down" {
					from, to, changed = "name:"+test.from, test.to, "."
				}
				args := append([]string{noun, "cp"}, strings.Fields(test.flags)...)
				code, _, stderr := f.run(t, append(args, from, to)...)
				wanted := test.code
				if code != 0 && wanted != 0 { // who finds it out, decides the code
					code, wanted = min(code, 1), 1
				}
				if code != wanted || code != 0 && !strings.HasPrefix(stderr, "Error: ") {
					t.Errorf("code %d: %s", code, stderr)
				}
				want := make(map[string]string)
				for item := range strings.FieldsSeq(before + " " + test.change) {
					want[strings.FieldsFunc(item, func(r rune) bool { return r == '=' || r == '>' })[0]] = item
				}
				got := make(map[string]string)
				for item := range strings.FieldsSeq(listing(t, changed)) {
					got[strings.FieldsFunc(item, func(r rune) bool { return r == '=' || r == '>' })[0]] = item
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

func TestCopyStreams(t *testing.T) {
	f := newFake(t)
	there := sides(t, f)
	code, stdout, stderr := f.run(t, "env", "cp", "demo:/dir", "-")
	if code != 0 || stderr != "" {
		t.Fatalf("code %d: %s", code, stderr)
	}
	reader := tar.NewReader(strings.NewReader(stdout))
	if header, err := reader.Next(); err != nil || header.Name != "dir/" {
		t.Errorf("%+v %v", header, err)
	}
	code, _, stderr = f.runWith(t.Context(), stdout, map[string]string{}, "env", "cp", "-", "demo:/empty")
	if code != 0 || !strings.Contains(stderr, "Copied 4 files and directories") || !strings.Contains(listing(t, there), "empty/dir/sub/b=bbbbb") {
		t.Errorf("code %d: %s %s", code, stderr, listing(t, there))
	}
	code, _, stderr = f.runWith(t.Context(), "nonsense", map[string]string{}, "env", "cp", "-", "demo:/empty")
	if code != 4 || !strings.Contains(stderr, "archive") {
		t.Errorf("nonsense: %d %s", code, stderr)
	}
	f.cut = true
	for _, to := range []string{"-", "new", "file"} {
		code, _, stderr = f.run(t, "env", "cp", "demo:/dir/sub/b", to)
		if code != 4 || !strings.Contains(stderr, "stopped") {
			t.Errorf("broken off, to %s: %d %s", to, code, stderr)
		}
	}
	if got := listing(t, "."); strings.Contains(got, "new") || strings.Contains(got, ".remotegpu") || !strings.Contains(got, " file=file") {
		t.Errorf("a download that broke off left %s", got)
	}
}

// Small files are not sent one by one, and all arrive.
func TestCopyOfManySmallFiles(t *testing.T) {
	const files = 500
	f := newFake(t)
	there := sides(t, f)
	if err := os.Mkdir("many", 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range files {
		name := strconv.Itoa(i)
		if err := os.WriteFile(filepath.Join("many", name), []byte(name), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"env", "cp", "many", "demo:/"}, {"volume", "cp", "many", "data:/again"}} {
		f.parts.Store(0)
		if code, _, stderr := f.run(t, args...); code != 0 {
			t.Fatalf("%v: code %d: %s", args, code, stderr)
		}
		if parts := f.parts.Load(); parts >= files {
			t.Errorf("%v: %d files were sent in %d messages", args, files, parts)
		}
	}
	want := listing(t, "many")
	for _, name := range []string{"many", "again"} {
		if got := listing(t, filepath.Join(there, name)); got != want {
			t.Errorf("in %s there is %s", name, got)
		}
	}
}

// What comes to standard input is sent when it comes: who writes it may wait
// for the first file before it makes the second.
func TestCopyOfSlowStream(t *testing.T) {
	f := newFake(t)
	there := sides(t, f)
	reader, writer := io.Pipe()
	wrote := make(chan error, 1)
	go func() {
		archive := tar.NewWriter(writer)
		err := archive.WriteHeader(&tar.Header{Name: "first", Typeflag: tar.TypeReg, Size: 5, Mode: 0o640})
		if err == nil {
			_, err = io.WriteString(archive, "first")
		}
		if err == nil {
			err = archive.Flush()
		}
		for err == nil {
			if _, look := os.Stat(filepath.Join(there, "empty/first")); look == nil {
				break
			}
			if err = t.Context().Err(); err == nil {
				time.Sleep(time.Millisecond)
			}
		}
		if err == nil {
			err = archive.Close()
		}
		wrote <- err
		writer.CloseWithError(err)
	}()
	var out, errs bytes.Buffer
	env := map[string]string{"REMOTEGPU_ADDR": f.addr}
	code := cli.Run(t.Context(), []string{"env", "cp", "-", "demo:/empty"}, reader, &out, &errs, func(key string) string { return env[key] })
	if err := <-wrote; code != 0 || err != nil || !strings.Contains(listing(t, there), "empty/first=first") {
		t.Errorf("code %d, %v: %s", code, err, errs.String())
	}
}

// A name is any bytes here as it is there, in both directions: archives of
// other systems have names of other encodings.
func TestCopyOfNamesThatAreNotUTF8(t *testing.T) {
	for _, noun := range []string{"env", "volume"} {
		f := newFake(t)
		there := sides(t, f)
		odd := filepath.Join(there, "latin", "d\xe9p\xf4t")
		if err := os.MkdirAll(odd, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(odd, "caf\xe9.txt"), []byte("noir"), 0o640); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(filepath.Join(odd, "caf\xe9.txt"), filepath.Join(odd, "t\xe9")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("caf\xe9.txt", filepath.Join(odd, "\xe0")); err != nil {
			t.Fatal(err)
		}
		want := listing(t, filepath.Join(there, "latin"))
		if code, _, stderr := f.run(t, noun, "cp", "name:/latin", "."); code != 0 {
			t.Errorf("%s: code %d: %s", noun, code, stderr)
		}
		if got := listing(t, "latin"); got != want {
			t.Errorf("%s: here there is %q, there %q", noun, got, want)
		}
		if code, _, stderr := f.run(t, noun, "cp", "latin", "name:/back"); code != 0 {
			t.Errorf("%s back: code %d: %s", noun, code, stderr)
		}
		if got := listing(t, filepath.Join(there, "back")); got != want {
			t.Errorf("%s: back there is %q, there was %q", noun, got, want)
		}
	}
}

// What cannot have its name here is told, and keeps nothing else from being
// copied.
func TestCopyOfNamesThatCannotBeHere(t *testing.T) {
	f := newFake(t)
	sides(t, f)
	long := "d/" + strings.Repeat("x", 300)
	f.hostile = []tar.Header{
		{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: long, Typeflag: tar.TypeReg, Mode: 0o640},
		{Name: "d/other", Typeflag: tar.TypeLink, Linkname: long},
		{Name: long + "y/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: long + "y/in", Typeflag: tar.TypeReg, Mode: 0o640},
		{Name: long + "z", Typeflag: tar.TypeSymlink, Linkname: "good"},
		{Name: "d/good", Typeflag: tar.TypeReg, Mode: 0o640},
	}
	code, stdout, stderr := f.run(t, "env", "cp", "demo:/d", "empty")
	if code != 4 || stdout != "" || !strings.Contains(stderr, "5 files and directories were left out") || !strings.Contains(stderr, long) || !strings.Contains(stderr, "Try: ") {
		t.Errorf("code %d: %s", code, stderr)
	}
	if got := listing(t, "empty"); got != "d/ d/good=evil" {
		t.Errorf("there is %s", got)
	}
}

func TestCopyFlags(t *testing.T) {
	f := newFake(t)
	sides(t, f)
	code, stdout, _ := f.run(t, "env", "cp", "-o", "json", "--project", "p", "--owner", "app:users", "--no-overwrite", "file", "demo:/empty")
	want := &remotegpuv1.UploadFilesStart{Environment: "demo", Project: "p", Path: "/empty", Owner: "app:users", NoOverwrite: true}
	if diff := cmp.Diff(want, f.last, protocmp.Transform()); code != 0 || diff != "" || !strings.Contains(stdout, `"bytes": "4"`) {
		t.Errorf("code %d %s %s", code, stdout, diff)
	}
	code, _, _ = f.run(t, "volume", "cp", "-a", "file", "data:/empty")
	wantVolume := &remotegpuv1.UploadVolumeFilesStart{Volume: "data", Path: "/empty", KeepOwnership: true}
	if diff := cmp.Diff(wantVolume, f.last, protocmp.Transform()); code != 0 || diff != "" {
		t.Errorf("code %d %s", code, diff)
	}
	for _, args := range []string{
		"file new", "demo:/a other:/b", "- -", "-a --owner app file demo:/x", "--owner app demo:/file new", "./demo:/a /b:c",
		"file demo:", "demo: new", // not the root by accident
	} {
		if code, _, stderr := f.run(t, append([]string{"env", "cp"}, strings.Fields(args)...)...); code != 2 || !strings.Contains(stderr, "Try:") {
			t.Errorf("%s: code %d, %s", args, code, stderr)
		}
	}
	if code, _, _ := f.run(t, "env", "cp", "demo:/file", ""); code != 2 {
		t.Errorf("no path: %d", code)
	}
}

// sendHostile sends what was not asked for.
func (f *fake) sendHostile(stream remotegpuv1connect.EnvironmentServiceDownloadFilesServerStream) error {
	var out bytes.Buffer
	writer := tar.NewWriter(&out)
	for _, header := range f.hostile {
		if header.Typeflag == tar.TypeReg {
			header.Size = 4
		}
		if err := writer.WriteHeader(&header); err != nil {
			return err
		}
		if header.Size > 0 {
			if _, err := io.WriteString(writer, "evil"); err != nil {
				return err
			}
		}
	}
	writer.Close()
	info := &remotegpuv1.FileInfo{Name: "d", Type: remotegpuv1.FileType_FILE_TYPE_DIRECTORY}
	if f.lone {
		info.Type = remotegpuv1.FileType_FILE_TYPE_REGULAR
	}
	for _, message := range []*remotegpuv1.DownloadFilesResponse{
		{Message: &remotegpuv1.DownloadFilesResponse_Info{Info: info}},
		{Message: &remotegpuv1.DownloadFilesResponse_Data{Data: out.Bytes()}},
		{Message: &remotegpuv1.DownloadFilesResponse_Summary{Summary: &remotegpuv1.DownloadSummary{}}},
	} {
		if err := stream.Send(message); err != nil {
			return err
		}
	}
	return nil
}

// A tenant decides what is in its environment; what comes out of it stays in
// the directory that was named.
func TestCopyOfHostileArchive(t *testing.T) {
	for name, headers := range map[string][]tar.Header{
		"another name":        {{Name: "d/", Typeflag: tar.TypeDir}, {Name: ".bashrc", Typeflag: tar.TypeReg}},
		"longer name":         {{Name: "d/", Typeflag: tar.TypeDir}, {Name: "dd/x", Typeflag: tar.TypeReg}},
		"upwards":             {{Name: "d/", Typeflag: tar.TypeDir}, {Name: "d/../file", Typeflag: tar.TypeReg}},
		"absolute":            {{Name: "/etc/x", Typeflag: tar.TypeReg}},
		"through a link":      {{Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "d/l/file", Typeflag: tar.TypeReg}},
		"through a long link": {{Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "/tmp"}, {Name: "d/l/file", Typeflag: tar.TypeReg}},
		"hard link":           {{Name: "d/l", Typeflag: tar.TypeLink, Linkname: "d/../file"}},
		"hard link elsewhere": {{Name: "d/l", Typeflag: tar.TypeLink, Linkname: "file"}},
		"hard link by a link": {{Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "d/h", Typeflag: tar.TypeLink, Linkname: "d/l/file"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			sides(t, f)
			f.hostile = headers
			before := listing(t, ".")
			code, _, stderr := f.run(t, "env", "cp", "demo:/d", "empty")
			if code == 0 {
				t.Errorf("it was taken: %s", stderr)
			}
			for item := range strings.FieldsSeq(listing(t, ".")) {
				if !strings.Contains(before, item) && !strings.HasPrefix(item, "empty/d/") {
					t.Errorf("%s was made", item)
				}
			}
		})
	}
}
