package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Extraction says how an archive is taken out.
type Extraction struct {
	// KeepOwner takes user, group, setuid and setgid bits and extended
	// attributes of users from the archive. Otherwise everything belongs to UID
	// and GID and has permission bits (and, a directory, the sticky bit) alone.
	KeepOwner bool
	UID, GID  int
	// NoOverwrite refuses what is there, except directories.
	NoOverwrite bool
}

// Extracted says what was written.
type Extracted struct {
	Entries int64
	Bytes   int64 // of plain files
}

// Extract takes a tar stream out into a directory that is there. Each file
// appears whole under its name, in place of the one that was there, or not at
// all; one that is replaced is not changed, so a program that has it open, or
// another name of it, keeps the old content. A directory that is there stays as
// it is and gets the archive's. It is not replaced by something else, nor
// something else by it. When Extract fails, what came before the failure is
// there.
//
// FILE_NOT_FOUND, FIELD_INVALID (the directory), FILE_NOT_ALLOWED,
// FILE_CONFLICT, FILE_EXISTS, NO_SPACE, ARCHIVE_INVALID, and an error of in as
// it is.
func (r *Root) Extract(ctx context.Context, dir string, in io.Reader, how Extraction) (Extracted, error) {
	top, err := r.enter(dir)
	if err != nil {
		return Extracted{}, err
	}
	defer top.Close() //nolint:errcheck // a directory: nothing can be lost
	source := &source{ctx: ctx, in: in}
	x := &extractor{root: r, ctx: ctx, how: how, top: top, in: tar.NewReader(source), buffer: make([]byte, copyBuffer)}
	defer x.leave()
	for begun := false; ; begun = true {
		header, err := x.in.Next()
		switch {
		case source.failed != nil:
			return x.done, source.failed
		case err != nil && !begun && source.alien(err):
			return x.done, notTar(source.head).WithTold(err)
		case errors.Is(err, io.EOF) && source.ended:
			return x.done, invalid("the archive has no end after %d entries: it was cut", x.done.Entries)
		case errors.Is(err, io.EOF):
			x.setTimes("")
			// What follows the end is padding; the sender should get rid of it.
			_, _ = io.Copy(io.Discard, source)
			return x.done, source.failed
		case err != nil:
			return x.done, invalid("the archive cannot be read after %d entries", x.done.Entries).WithCause(err)
		}
		if err := x.entry(header); err != nil {
			if source.failed != nil {
				return x.done, source.failed
			}
			return x.done, err
		}
	}
}

// source is where the archive comes from. It tells failures of its own from
// those of the archive.
type source struct {
	ctx    context.Context //nolint:containedctx // of the one call that it is a part of
	in     io.Reader
	failed error
	ended  bool
	head   []byte // the first bytes
}

// alien says, when there was no first header for err, whether what came is no
// tar stream at all, rather than one that is empty or was cut.
func (s *source) alien(err error) bool {
	empty := len(bytes.Trim(s.head, "\x00")) == 0
	return !empty && (compression(s.head) != "" || errors.Is(err, tar.ErrHeader) || len(s.head) < headSize)
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	if s.failed == nil && s.ctx.Err() != nil {
		s.failed = context.Cause(s.ctx)
	}
	if s.failed != nil {
		return 0, s.failed
	}
	n, err := s.in.Read(p)
	if missing := headSize - len(s.head); missing > 0 {
		s.head = append(s.head, p[:min(n, missing)]...)
	}
	switch {
	case errors.Is(err, io.EOF):
		s.ended = s.ended || n == 0
	case err != nil:
		s.failed = err
	}
	return n, err
}

type extractor struct {
	root   *Root
	ctx    context.Context //nolint:containedctx // of the one call that it is a part of
	how    Extraction
	top    *os.File
	in     *tar.Reader
	buffer []byte
	done   Extracted

	parent     *os.File // the directory of the last entry
	parentName string
	made       []madeDirectory
}

// madeDirectory is a new directory that gets its time when all is in it.
type madeDirectory struct {
	name string
	time []unix.Timespec
}

func (x *extractor) leave() {
	if x.parent != nil {
		_ = x.parent.Close() // a directory: nothing can be lost
	}
}

// entry takes one entry out.
func (x *extractor) entry(header *tar.Header) error {
	if header.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if x.how.KeepOwner && (!isID(header.Uid) || !isID(header.Gid)) {
		return invalid("%.64q is of user %d and group %d, which cannot be", header.Name, header.Uid, header.Gid)
	}
	name, err := clean(header.Name)
	if err != nil {
		return err
	}
	if name == "." {
		if header.Typeflag != tar.TypeDir {
			return invalid("an entry that is no directory has the name %q", header.Name)
		}
		return nil // the directory that is there
	}
	x.setTimes(name)
	parent, err := x.directoryOf(name)
	if err != nil {
		return err
	}
	base := path.Base(name)
	switch header.Typeflag {
	case tar.TypeDir:
		err = x.directory(parent, base, name, header)
	case tar.TypeReg, tar.TypeRegA, tar.TypeCont, tar.TypeGNUSparse: //nolint:staticcheck // old archives have TypeRegA
		err = x.regular(parent, base, name, header)
	case tar.TypeSymlink:
		err = x.symlink(parent, base, name, header)
	case tar.TypeLink:
		err = x.hardLink(parent, base, name, header)
	case tar.TypeFifo:
		err = x.fifo(parent, base, name, header)
	case tar.TypeChar, tar.TypeBlock:
		return invalid("%s is a device: none is made", name).WithHint("leave devices out of the archive")
	default:
		return invalid("%s is of the unknown type %q", name, header.Typeflag)
	}
	if err != nil {
		return err
	}
	x.done.Entries++
	return nil
}

// isID says whether a number is one of a user or group; the last is reserved.
func isID(n int) bool { return n >= 0 && n < 1<<32-1 }

// clean is the name of an entry relative to the directory that it is taken out
// in. It has no "..", which would lead out of it.
func clean(name string) (string, error) {
	if len(name) > MaxPath || strings.ContainsRune(name, 0) {
		return "", invalid("the name %.64q… is no path", name)
	}
	for element := range strings.SplitSeq(name, "/") {
		if element == ".." {
			return "", invalid("the name %q leads upwards", name)
		}
	}
	return path.Clean(strings.TrimLeft(name, "/")), nil
}

// directoryOf opens the directory of an entry beneath the top, and makes what
// is missing of it: archives leave directories out.
func (x *extractor) directoryOf(name string) (*os.File, error) {
	wanted := path.Dir(name)
	if wanted == "." {
		return x.top, nil
	}
	if x.parent != nil && x.parentName == wanted {
		return x.parent, nil
	}
	x.leave()
	x.parent = nil
	dir, err := x.open(wanted)
	if errors.Is(err, unix.ENOENT) {
		dir, err = x.makeAll(wanted)
	}
	if err != nil {
		return nil, err
	}
	x.parent, x.parentName = dir, wanted
	return dir, nil
}

// open opens a directory beneath the top. ENOENT is told as it is.
func (x *extractor) open(name string) (*os.File, error) {
	dir, err := openAt(int(x.top.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, beneath)
	if errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	if err != nil {
		return nil, explainWrite(name, err)
	}
	if err := x.root.admit(dir, name); err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return dir, nil
}

func (x *extractor) makeAll(name string) (*os.File, error) {
	at := x.top
	for element := range strings.SplitSeq(name, "/") {
		next, _, err := x.makeDirectory(at, element, name)
		if at != x.top {
			_ = at.Close() // a directory: nothing can be lost
		}
		if err != nil {
			return nil, err
		}
		at = next
	}
	return at, nil
}

// makeDirectory opens a directory, which it makes when it is not there.
func (x *extractor) makeDirectory(parent *os.File, base, name string) (dir *os.File, made bool, err error) {
	err = unix.Mkdirat(int(parent.Fd()), base, 0o755)
	if made = err == nil; err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, false, explainWrite(name, err)
	}
	dir, err = openAt(int(parent.Fd()), base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, beneath)
	if err != nil {
		if errors.Is(err, unix.ELOOP) {
			err = unix.ENOTDIR // a link, and openat2 says so
		}
		return nil, false, explainWrite(name, err)
	}
	if err := x.root.admit(dir, name); err != nil {
		return nil, false, errors.Join(err, dir.Close())
	}
	if made {
		if err := x.own(dir, &tar.Header{Typeflag: tar.TypeDir, Mode: 0o755, Uid: x.how.UID, Gid: x.how.GID}); err != nil {
			return nil, false, errors.Join(explainWrite(name, err), dir.Close())
		}
	}
	return dir, made, nil
}

func (x *extractor) directory(parent *os.File, base, name string, header *tar.Header) error {
	dir, made, err := x.makeDirectory(parent, base, name)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // a directory: nothing can be lost
	if !made {
		return nil
	}
	if err := x.own(dir, header); err != nil {
		return explainWrite(name, err)
	}
	x.made = append(x.made, madeDirectory{name, times(header)})
	return nil
}

// setTimes sets the times of new directories that an entry is not in: archives
// list what is in a directory right after it. "" is in none.
func (x *extractor) setTimes(name string) {
	for len(x.made) > 0 {
		last := x.made[len(x.made)-1]
		if strings.HasPrefix(name, last.name+"/") {
			return
		}
		x.made = x.made[:len(x.made)-1]
		dir, err := x.open(last.name)
		if err != nil {
			continue // somebody has moved it: it is not ours any more
		}
		_ = unix.UtimesNanoAt(unix.AT_FDCWD, selfPath(dir), last.time, 0) // a wrong time is no reason to fail
		_ = dir.Close()                                                   // a directory: nothing can be lost
	}
}

// own gives a new file its owner, permissions and attributes.
func (x *extractor) own(file *os.File, header *tar.Header) error {
	mode := uint32(header.Mode & 0o777)
	if header.Typeflag == tar.TypeDir {
		mode |= uint32(header.Mode & unix.S_ISVTX)
	}
	uid, gid := x.how.UID, x.how.GID
	if x.how.KeepOwner {
		uid, gid, mode = header.Uid, header.Gid, uint32(header.Mode&0o7777)
		if err := setAttributes(file, header); err != nil {
			return fmt.Errorf("set attributes: %w", err)
		}
	}
	// The owner first: changing it takes setuid bits away.
	if err := unix.Fchown(int(file.Fd()), uid, gid); err != nil {
		return fmt.Errorf("change owner: %w", err)
	}
	if err := unix.Fchmod(int(file.Fd()), mode); err != nil {
		return fmt.Errorf("change mode: %w", err)
	}
	return nil
}

func times(header *tar.Header) []unix.Timespec {
	at, err := unix.TimeToTimespec(header.ModTime)
	if err != nil {
		at = unix.Timespec{}
	}
	return []unix.Timespec{at, at}
}
