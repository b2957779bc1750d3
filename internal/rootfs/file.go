package rootfs

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/holes"
)

// maxSparse is the size in bytes of the largest file that an archive may have
// with holes: a few bytes there say that it is as large as it likes.
const maxSparse = 1 << 40

// temporary begins the names of files that are not whole yet, or about to
// replace another. They are there for moments, where the file system cannot do
// without, and a daemon that is killed in that moment leaves one.
const temporary = ".remotegpu-copy-"

// regular writes a plain file.
func (x *extractor) regular(parent *os.File, base, name string, header *tar.Header) error {
	if err := x.replaceable(parent, base, name); err != nil {
		return err
	}
	sparse := header.Typeflag == tar.TypeGNUSparse || header.PAXRecords["GNU.sparse.major"] != "" || header.PAXRecords["GNU.sparse.size"] != ""
	if sparse && header.Size > maxSparse {
		return invalid("%s has holes and a size of %d bytes, more than %d", name, header.Size, int64(maxSparse))
	}
	file, hidden, err := x.create(parent, name)
	if err != nil {
		return err
	}
	placed := false
	defer func() {
		_ = file.Close() // errors of writing were seen; what was not placed is gone
		if !placed && hidden != "" {
			_ = unix.Unlinkat(int(parent.Fd()), hidden, 0) // its directory may be gone
		}
	}()
	if err := x.fill(file, name, header.Size); err != nil {
		return err
	}
	if err := x.own(file, header); err != nil {
		return explainWrite(name, err)
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, selfPath(file), times(header), 0); err != nil {
		return explainWrite(name, fmt.Errorf("set time: %w", err))
	}
	if hidden == "" {
		err = x.place(parent, base, func(at string) error {
			return unix.Linkat(unix.AT_FDCWD, selfPath(file), int(parent.Fd()), at, unix.AT_SYMLINK_FOLLOW)
		})
	} else {
		err = x.rename(parent, hidden, base)
	}
	if err != nil {
		return explainWrite(name, err)
	}
	placed = true
	x.done.Bytes += header.Size
	return nil
}

// create opens a new file that nobody sees: without a name, which a crash takes
// away by itself, or where that cannot be, with one of ours.
func (x *extractor) create(parent *os.File, name string) (file *os.File, hidden string, err error) {
	if !x.root.named {
		file, err = openAt(int(parent.Fd()), ".", unix.O_TMPFILE|unix.O_WRONLY, beneath)
		if err == nil {
			return file, "", nil
		}
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EINVAL) {
			return nil, "", explainWrite(name, err)
		}
	}
	hidden = temporary + rand.Text()
	file, err = openAt(int(parent.Fd()), hidden, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW, beneath)
	if err != nil {
		return nil, "", explainWrite(name, err)
	}
	return file, hidden, nil
}

// fill writes the content of an entry. What is zeros, whether the archive says
// so in few bytes or has them all, becomes holes: no archive of ours can tell
// the holes of a file from its zeros, and one of a terabyte fits no disk.
func (x *extractor) fill(file *os.File, name string, size int64) error {
	out := holes.NewWriter(file)
	for {
		if x.ctx.Err() != nil { // holes of an archive are read from nowhere
			return context.Cause(x.ctx)
		}
		n, err := io.ReadFull(x.in, x.buffer)
		if ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF); err != nil && !ended {
			return invalid("the archive ends, or cannot be read, within %s", name).WithCause(err)
		}
		if _, err := out.Write(x.buffer[:n]); err != nil {
			return explainWrite(name, err)
		}
		if n < len(x.buffer) {
			break
		}
	}
	if out.Written() != size {
		return invalid("the archive ends within %s", name)
	}
	return explainWrite(name, out.Finish())
}

// replaceable refuses early what place would refuse after the work, and what
// only seems to be replaceable: a rename over a mount of another namespace, as
// the container's, would take the mount away.
func (x *extractor) replaceable(parent *os.File, base, name string) error {
	file, err := openAt(int(parent.Fd()), base, unix.O_PATH|unix.O_NOFOLLOW, beneath|unix.RESOLVE_NO_XDEV)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EXDEV):
		return explainWrite(name, unix.EBUSY)
	case err != nil:
		return explainWrite(name, err)
	}
	defer file.Close() //nolint:errcheck // O_PATH: nothing can be lost
	stat, err := status(file)
	switch {
	case err != nil:
		return fmt.Errorf("inspect %s: %w", name, err)
	case typeOf(&stat) == Directory:
		return explainWrite(name, unix.EISDIR)
	case stat.Mode&unix.S_IFMT == unix.S_IFCHR, stat.Mode&unix.S_IFMT == unix.S_IFBLK:
		return conflict(name, "is a device there, which is not replaced")
	case x.how.NoOverwrite:
		return explainWrite(name, unix.EEXIST)
	}
	return x.root.admit(file, name)
}

// place makes something under a name, in place of what is there: a name beside
// it takes it first, then it takes over.
func (x *extractor) place(parent *os.File, base string, create func(at string) error) error {
	err := create(base)
	if !errors.Is(err, unix.EEXIST) || x.how.NoOverwrite {
		return err
	}
	beside := temporary + rand.Text()
	if err := create(beside); err != nil {
		return err
	}
	if err := x.rename(parent, beside, base); err != nil {
		_ = unix.Unlinkat(int(parent.Fd()), beside, 0) // its directory may be gone
		return err
	}
	// Two names of one file are left both by a rename.
	if err := unix.Unlinkat(int(parent.Fd()), beside, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

func (x *extractor) rename(parent *os.File, from, to string) error {
	flags := uint(0)
	if x.how.NoOverwrite {
		flags = unix.RENAME_NOREPLACE
	}
	return unix.Renameat2(int(parent.Fd()), from, int(parent.Fd()), to, flags)
}

func (x *extractor) symlink(parent *os.File, base, name string, header *tar.Header) error {
	if header.Linkname == "" || len(header.Linkname) > MaxPath {
		return invalid("the link %s leads to no path", name)
	}
	return x.special(parent, base, name, header, func(at string) error {
		return unix.Symlinkat(header.Linkname, int(parent.Fd()), at)
	})
}

func (x *extractor) fifo(parent *os.File, base, name string, header *tar.Header) error {
	return x.special(parent, base, name, header, func(at string) error {
		return unix.Mknodat(int(parent.Fd()), at, unix.S_IFIFO|0o600, 0)
	})
}

// special makes what cannot be opened, and so gets its owner by its name, under
// a name that nobody else knows, before it is put in its place.
func (x *extractor) special(parent *os.File, base, name string, header *tar.Header, create func(at string) error) error {
	if err := x.replaceable(parent, base, name); err != nil {
		return err
	}
	beside := temporary + rand.Text()
	if err := create(beside); err != nil {
		return explainWrite(name, err)
	}
	err := x.ownSpecial(parent, beside, header)
	if err == nil {
		err = x.rename(parent, beside, base)
	}
	if err != nil {
		_ = unix.Unlinkat(int(parent.Fd()), beside, 0) // its directory may be gone
		return explainWrite(name, err)
	}
	return nil
}

func (x *extractor) ownSpecial(parent *os.File, beside string, header *tar.Header) error {
	uid, gid := x.how.UID, x.how.GID
	if x.how.KeepOwner {
		uid, gid = header.Uid, header.Gid
	}
	file, err := openAt(int(parent.Fd()), beside, unix.O_PATH|unix.O_NOFOLLOW, beneath)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // O_PATH: nothing can be lost
	// Whoever may write here can have swapped it: what they own anyway may get
	// the owner that the caller chose, another name of a file may not.
	if stat, err := status(file); err != nil || stat.Nlink != 1 || typeOf(&stat) != Link && typeOf(&stat) != FIFO {
		return errors.Join(err, unix.ESTALE)
	}
	if err := unix.Fchownat(int(file.Fd()), "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("change owner: %w", err)
	}
	if header.Typeflag == tar.TypeFifo {
		if err := unix.Fchmodat(unix.AT_FDCWD, selfPath(file), uint32(header.Mode&0o777), 0); err != nil {
			return fmt.Errorf("change mode: %w", err)
		}
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, selfPath(file), times(header), 0); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

// hardLink makes another name of a plain file that the archive has, or that is
// there, beneath the top.
func (x *extractor) hardLink(parent *os.File, base, name string, header *tar.Header) error {
	target, err := clean(header.Linkname)
	if err != nil {
		return err
	}
	if target == name {
		return nil // tar's own words for a file that was listed twice
	}
	if err := x.replaceable(parent, base, name); err != nil {
		return err
	}
	dir := x.top
	if wanted := path.Dir(target); wanted != "." {
		if dir, err = x.open(wanted); err != nil {
			return x.noTarget(name, target, err)
		}
		defer dir.Close() //nolint:errcheck // a directory: nothing can be lost
	}
	file, err := openAt(int(dir.Fd()), path.Base(target), unix.O_PATH|unix.O_NOFOLLOW, beneath)
	if err != nil {
		return x.noTarget(name, target, err)
	}
	defer file.Close() //nolint:errcheck // O_PATH: nothing can be lost
	stat, err := status(file)
	if err != nil {
		return fmt.Errorf("inspect %s: %w", target, err)
	}
	if typeOf(&stat) != Regular {
		return invalid("the hard link %s leads to %s, which is no plain file", name, target)
	}
	return explainWrite(name, x.place(parent, base, func(at string) error {
		return unix.Linkat(unix.AT_FDCWD, selfPath(file), int(parent.Fd()), at, unix.AT_SYMLINK_FOLLOW)
	}))
}

func (x *extractor) noTarget(name, target string, err error) error {
	if errors.Is(err, unix.ENOENT) {
		return invalid("the hard link %s leads to %s, which is not there", name, target).WithCause(err)
	}
	return explainWrite(target, err)
}
