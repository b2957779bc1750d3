package cli

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/internal/holes"
)

// copyDown copies from there to here.
func (a *app) copyDown(ctx context.Context, files remoteFiles, from, to place, f *copyFlags) error {
	if to.standard() && onTerminal(a.stdout) {
		return usagef("remotegpu … cp "+from.String()+" - | tar -t", "a tar stream is nothing for a terminal")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := files.download(ctx, from.path, f.followLink || contents(from.path))
	if err != nil {
		return err
	}
	defer stream.close() //nolint:errcheck // its end was told, or its failure
	if to.standard() {
		if _, err := io.Copy(a.stdout, stream); err != nil {
			return err
		}
		a.warnSummary(stream.summary)
		return nil
	}
	path, err := downTo(from, to, stream.info)
	if err != nil {
		return err
	}
	u := &localUnpack{prefix: stream.info.GetName(), flags: f}
	if stream.info.GetType() == remotegpuv1.FileType_FILE_TYPE_DIRECTORY {
		err = u.directory(path, stream)
	} else {
		err = u.single(path, stream)
	}
	if stream.failed != nil && !errors.Is(stream.failed, io.EOF) {
		return stream.failed
	}
	if err == nil {
		_, err = io.Copy(io.Discard, stream) // the padding, and the summary
	}
	if err != nil {
		return err
	}
	stream.summary.Skipped += int64(u.skipped)
	if a.output == "json" {
		return a.json(stream.summary)
	}
	a.say("Copied %d files and directories, %s, to %s", stream.summary.GetEntries()-int64(u.skipped), size(stream.summary.GetBytes()), to)
	a.warnSummary(stream.summary)
	return nil
}

func (a *app) warnSummary(summary *remotegpuv1.DownloadSummary) {
	if n := summary.GetSkipped(); n > 0 {
		a.say("Warning: %d devices, sockets, pipes or unreadable files were left out", n)
	}
	if n := summary.GetChanged(); n > 0 {
		a.say("Warning: %d files changed while they were copied", n)
	}
}

// downTo decides what name a download gets here.
func downTo(from, to place, info *remotegpuv1.FileInfo) (string, error) {
	directory := info.GetType() == remotegpuv1.FileType_FILE_TYPE_DIRECTORY
	there, err := os.Stat(to.path)
	switch {
	case errors.Is(err, os.ErrNotExist) && !directory && os.IsPathSeparator(to.path[len(to.path)-1]):
		return "", &failure{Code: "not_found", Message: "there is no directory " + to.path + " here", Hints: []string{"leave the slash out to give the file that name"}, exit: exitNotFound}
	case errors.Is(err, os.ErrNotExist):
		return filepath.Clean(to.path), nil
	case err != nil:
		return "", fmt.Errorf("look at %s: %w", to.path, err)
	case there.IsDir() && directory && (contents(from.path) || info.GetName() == "."):
		return to.path, nil
	case there.IsDir():
		if !filepath.IsLocal(info.GetName()) || filepath.Base(info.GetName()) != info.GetName() {
			return "", fmt.Errorf("%q is no name for a file here", info.GetName())
		}
		return filepath.Join(to.path, info.GetName()), nil
	case directory:
		return "", notADirectory(to.path)
	}
	return filepath.Clean(to.path), nil
}

// localUnpack takes a tar stream out here. The environment that it comes from
// may be hostile: nothing is written outside of the directory that is copied
// to, whatever names and links are in the stream.
type localUnpack struct {
	prefix  string // first element of all names; ".": none
	flags   *copyFlags
	root    *os.Root
	made    []*tar.Header // new directories: their modes and times come last
	skipped int
}

// single takes the one file out that the stream has.
func (u *localUnpack) single(path string, in io.Reader) (err error) {
	for range 16 { // a link at the end is written through, as there
		link, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(link) {
			link = filepath.Dir(path) + string(filepath.Separator) + link
		}
		path = link
	}
	if u.root, err = os.OpenRoot(filepath.Dir(path)); err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	defer u.root.Close() //nolint:errcheck // a directory: nothing can be lost
	reader := tar.NewReader(in)
	header, err := reader.Next()
	if err != nil {
		return fmt.Errorf("read what the node sends: %w", err)
	}
	return u.entry(filepath.Base(path), header, reader)
}

// directory takes what is in a directory out.
func (u *localUnpack) directory(path string, in io.Reader) (err error) {
	made := false
	if err := os.Mkdir(path, 0o700); err == nil {
		made = true
	} else if !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make directory: %w", err)
	}
	if u.root, err = os.OpenRoot(path); err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	defer u.root.Close() //nolint:errcheck // a directory: nothing can be lost
	for reader := tar.NewReader(in); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return u.finish()
		}
		if err != nil {
			return fmt.Errorf("read what the node sends: %w", err)
		}
		name, err := u.local(header.Name)
		if err != nil {
			return err
		}
		if name == "." {
			if made && header.Typeflag == tar.TypeDir {
				header.Name = "."
				u.made = append(u.made, header)
			}
			continue
		}
		if err := u.entry(name, header, reader); err != nil {
			return err
		}
	}
}

// local is the name of an entry below the directory that is copied to.
func (u *localUnpack) local(name string) (string, error) {
	rest := strings.TrimSuffix(name, "/")
	if u.prefix != "." {
		inner, below := strings.CutPrefix(rest, u.prefix)
		if !below || inner != "" && inner[0] != '/' {
			return "", fmt.Errorf("the node sent %q, which was not asked for", name)
		}
		rest = strings.TrimPrefix(inner, "/")
	}
	if rest == "" || rest == "." {
		return ".", nil
	}
	local, err := filepath.Localize(rest)
	if err != nil {
		return "", fmt.Errorf("the node sent %q, which cannot be a name here", name)
	}
	return local, nil
}

func (u *localUnpack) entry(name string, header *tar.Header, content io.Reader) error {
	var err error
	switch header.Typeflag {
	case tar.TypeDir:
		err = u.root.Mkdir(name, 0o700)
		if err == nil {
			header.Name = name
			u.made = append(u.made, header)
		} else if info, look := u.root.Lstat(name); look == nil && info.IsDir() {
			err = nil
		}
	case tar.TypeReg:
		err = u.file(name, header, content)
	case tar.TypeSymlink:
		err = u.place(name, func(at string) error { return u.root.Symlink(header.Linkname, at) })
		if err == nil && u.flags.archive {
			err = u.root.Lchown(name, header.Uid, header.Gid)
		}
	case tar.TypeLink:
		first, bad := u.local(header.Linkname)
		if bad != nil {
			return bad
		}
		err = u.place(name, func(at string) error { return u.root.Link(first, at) })
	default:
		u.skipped++
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", header.Name, err)
	}
	return nil
}

// file writes a plain file under a name of its own and lets it take over.
func (u *localUnpack) file(name string, header *tar.Header, content io.Reader) error {
	return u.place(name, func(at string) (err error) {
		file, err := u.root.OpenFile(at, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, u.root.Remove(at))
			}
		}()
		err = fill(file, content)
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
		return u.describe(at, header)
	})
}

// fill writes the content of a new file. What is zeros becomes holes: the tar
// stream has the holes of a file as zeros.
func fill(file *os.File, content io.Reader) error {
	out := holes.NewWriter(file)
	blocks := bufio.NewWriterSize(out, 2*holes.Size) // the stream comes in smaller pieces
	if _, err := io.Copy(blocks, content); err != nil {
		return err
	}
	return errors.Join(blocks.Flush(), out.Finish())
}

// place makes something under a name of its own and renames it over what is
// there. A directory is not replaced.
func (u *localUnpack) place(name string, create func(at string) error) error {
	if info, err := u.root.Lstat(name); err == nil {
		if info.IsDir() {
			return &failure{Code: "failed_precondition", Message: name + " is a directory here, and none there", Hints: []string{"remove it first, or choose another place"}, exit: exitConflict}
		}
		if u.flags.noOverwrite {
			return &failure{Code: "already_exists", Message: name + " exists here", Hints: []string{"leave --no-overwrite out, or choose another place"}, exit: exitConflict}
		}
	}
	beside := filepath.Join(filepath.Dir(name), ".remotegpu-copy-"+rand.Text())
	if err := create(beside); err != nil {
		return err
	}
	if err := u.root.Rename(beside, name); err != nil {
		return errors.Join(err, u.root.Remove(beside))
	}
	// Two names of one file are left both by a rename.
	if err := u.root.Remove(beside); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// describe gives a file or directory its owner, mode and time.
func (u *localUnpack) describe(name string, header *tar.Header) error {
	mode := fs.FileMode(header.Mode & 0o777)
	if u.flags.archive {
		if err := u.root.Chown(name, header.Uid, header.Gid); err != nil {
			return fmt.Errorf("only root can keep owners: %w", err)
		}
		mode = header.FileInfo().Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	}
	if err := u.root.Chmod(name, mode); err != nil {
		return err
	}
	return u.root.Chtimes(name, time.Time{}, header.ModTime)
}

// finish describes the new directories, from below.
func (u *localUnpack) finish() error {
	for _, header := range slices.Backward(u.made) {
		if err := u.describe(header.Name, header); err != nil {
			return fmt.Errorf("copy %s: %w", header.Name, err)
		}
	}
	return nil
}
