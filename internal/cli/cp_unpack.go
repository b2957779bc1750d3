package cli

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/internal/holes"
)

// localUnpack takes a tar stream out here. The environment that it comes from
// may be hostile: nothing is written outside of the directory that is copied
// to, whatever names and links are in the stream.
type localUnpack struct {
	prefix  string // first element of all names; ".": none
	flags   *copyFlags
	umask   fs.FileMode // what new files and directories are not allowed without -a
	root    *os.Root
	link    string        // where the link leads that was copied alone
	made    []*tar.Header // new directories: their modes and times come last
	skipped int
	lost    lostNames
	blocks  *bufio.Writer // of one file after the other
}

// single takes the one file out that the stream has.
func (u *localUnpack) single(ctx context.Context, to localTarget, in io.Reader) (err error) {
	reader := tar.NewReader(in)
	header, err := reader.Next()
	if err != nil {
		return fmt.Errorf("read what the node sends: %w", err)
	}
	dir, base := to.path, to.name
	switch header.Typeflag {
	case tar.TypeReg:
		if base != "" {
			break
		}
		named, err := findNamed(to.path)
		if err != nil {
			return err
		}
		if named.through {
			return u.pass(ctx, named, reader)
		}
		dir, base = named.dir, named.base
	case tar.TypeSymlink:
		if base == "" {
			dir, base = filepath.Split(strings.TrimRightFunc(to.path, func(r rune) bool { return r < 128 && os.IsPathSeparator(uint8(r)) }))
		}
		u.link = header.Linkname
	default:
		return &failure{Code: "failed_precondition", Message: "what is copied is neither a file, nor a link, nor a directory", Hints: []string{"name another file"}, exit: exitConflict}
	}
	if u.root, err = os.OpenRoot(orElse(dir, ".")); err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	defer u.root.Close() //nolint:errcheck // a directory: nothing can be lost
	return u.entry(base, header, reader)
}

// pass writes to what has no content of its own to be replaced.
func (u *localUnpack) pass(ctx context.Context, named *namedFile, content io.Reader) error {
	if u.flags.noOverwrite {
		return existsHere(named.path)
	}
	return named.pass(ctx, func(file io.Writer) error {
		_, err := io.Copy(file, content)
		return err
	})
}

// enter opens the directory that is copied to, and makes it when it is not
// there.
func (u *localUnpack) enter(to localTarget) (made bool, err error) {
	if to.name == "" {
		if err := os.Mkdir(to.path, 0o700); err == nil {
			made = true
		} else if !errors.Is(err, os.ErrExist) {
			return false, fmt.Errorf("make directory: %w", err)
		}
		u.root, err = os.OpenRoot(to.path)
	} else {
		var parent *os.Root
		if parent, err = os.OpenRoot(to.path); err != nil {
			return false, fmt.Errorf("open directory: %w", err)
		}
		defer parent.Close() //nolint:errcheck // a directory: nothing can be lost
		if err := parent.Mkdir(to.name, 0o700); err == nil {
			made = true
		} else if !errors.Is(err, os.ErrExist) {
			return false, fmt.Errorf("make directory: %w", err)
		}
		if info, err := parent.Lstat(to.name); err == nil && !info.IsDir() {
			return false, notADirectory(filepath.Join(to.path, to.name))
		}
		u.root, err = parent.OpenRoot(to.name)
	}
	if err != nil {
		return false, fmt.Errorf("open directory: %w", err)
	}
	return made, nil
}

// directory takes what is in a directory out.
func (u *localUnpack) directory(to localTarget, in io.Reader) error {
	made, err := u.enter(to)
	if err != nil {
		return err
	}
	defer u.root.Close() //nolint:errcheck // a directory: nothing can be lost
	for reader := tar.NewReader(in); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return errors.Join(u.finish(), u.lost.err())
		}
		if err != nil {
			return fmt.Errorf("read what the node sends: %w", err)
		}
		name, err := u.local(header.Name)
		if errors.Is(err, errNoName) {
			u.lost.add(header)
			continue
		}
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
		err = u.entry(name, header, reader)
		if u.lost.is(header, err) {
			u.lost.add(header)
			continue
		}
		if err != nil {
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
	for element := range strings.SplitSeq(rest, "/") {
		if element == "" || element == "." || element == ".." {
			return "", fmt.Errorf("the node sent %q, which leads elsewhere", name)
		}
	}
	return localize(rest)
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
		err = replaceIn(u.root, name, u.flags.noOverwrite, func(at string, _ fs.FileInfo) error { return u.root.Symlink(header.Linkname, at) })
		if err == nil && u.flags.archive {
			err = u.root.Lchown(name, header.Uid, header.Gid)
		}
	case tar.TypeLink:
		first, bad := u.local(header.Linkname)
		if bad != nil {
			return bad // errNoName: then the content is lost with its first name
		}
		if info, look := u.root.Lstat(first); look == nil && !info.Mode().IsRegular() {
			return fmt.Errorf("the node sent %q as another name of what is no file", header.Name)
		}
		err = replaceIn(u.root, name, u.flags.noOverwrite, func(at string, _ fs.FileInfo) error { return u.root.Link(first, at) })
	default:
		u.skipped++
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", header.Name, err)
	}
	return nil
}

// file writes a plain file under a name of its own and lets it take over. One
// that is there keeps its owner and permissions, as with cp, unless those of
// the archive are wanted.
func (u *localUnpack) file(name string, header *tar.Header, content io.Reader) error {
	return replaceIn(u.root, name, u.flags.noOverwrite, func(at string, old fs.FileInfo) error {
		file, err := u.root.OpenFile(at, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		err = u.fill(file, content)
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
		if old == nil || u.flags.archive {
			return u.describe(at, header)
		}
		if err := keepAccess(u.root, at, old); err != nil {
			return err
		}
		return u.root.Chtimes(at, time.Time{}, header.ModTime)
	})
}

// fill writes the content of a new file. What is zeros becomes holes: the tar
// stream has the holes of a file as zeros.
func (u *localUnpack) fill(file *os.File, content io.Reader) error {
	out := holes.NewWriter(file)
	if u.blocks == nil {
		u.blocks = bufio.NewWriterSize(nil, 2*holes.Size) // the stream comes in smaller pieces
	}
	u.blocks.Reset(out) // what failed before is forgotten
	if _, err := io.Copy(u.blocks, content); err != nil {
		return err
	}
	return errors.Join(u.blocks.Flush(), out.Finish())
}

// describe gives a file or directory its owner, mode and time.
func (u *localUnpack) describe(name string, header *tar.Header) error {
	mode := fs.FileMode(header.Mode&0o777) &^ u.umask
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
