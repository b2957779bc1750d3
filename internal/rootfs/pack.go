package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/holes"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// Bounds of what is read: a tenant chooses it.
const (
	maxDepth    = 256     // levels of directories; each keeps a descriptor
	maxHardLink = 100_000 // files with several names that are remembered
	namesAtOnce = 512     // of a directory
	copyBuffer  = 128 << 10
)

// Packed says what was written.
type Packed struct {
	Entries int64
	Bytes   int64 // of plain files
	Skipped int64 // sockets, devices, and what could not be opened
	Changed int64 // files that became shorter or longer meanwhile: filled up with zeros, or cut
}

// Pack writes what a path leads to, with all that is below it, as a tar stream
// whose names begin with Info.Name, and an end. first is called before
// anything is written. follow says whether a link at the end of the path is
// followed; links below it are written as links. What disappears meanwhile is
// left out. Mounts are entered, except the kernel's own file systems.
//
// FILE_NOT_FOUND, FILE_NOT_ALLOWED (also: nested too deeply), FIELD_INVALID,
// and the errors of first and of out as they are.
func (r *Root) Pack(ctx context.Context, name string, follow bool, out io.Writer, first func(Info) error) (Packed, error) {
	file, stat, err := r.find(name, follow)
	if err != nil {
		return Packed{}, err
	}
	defer file.Close() //nolint:errcheck // O_PATH: nothing can be lost
	info, err := infoOf(file, baseName(name), &stat)
	if err != nil {
		return Packed{}, err
	}
	if info.Type == Other {
		return Packed{}, problem.New(problem.FileNotAllowed, "%s is a device or a socket", name).WithField("path").
			WithHint("only directories, plain files, links and FIFOs can be copied")
	}
	if err := first(info); err != nil {
		return Packed{}, err
	}
	p := &packer{root: r, ctx: ctx, out: tar.NewWriter(out), buffer: make([]byte, copyBuffer), names: make(map[fileID]string)}
	if err := p.entry(file, &stat, info.Name, 0); err != nil {
		return p.done, err
	}
	return p.done, p.out.Close()
}

type packer struct {
	root   *Root
	ctx    context.Context //nolint:containedctx // of the one call that it is a part of
	out    *tar.Writer
	buffer []byte
	names  map[fileID]string // of files with several names
	done   Packed
}

// fileID tells files apart.
type fileID struct{ device, inode uint64 }

// entry writes one file, a directory with what is below it. file is O_PATH.
func (p *packer) entry(file *os.File, stat *unix.Stat_t, name string, depth int) error {
	if p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	header := &tar.Header{
		Format: tar.FormatPAX, Name: name, Mode: int64(stat.Mode & 0o7777), Uid: int(stat.Uid), Gid: int(stat.Gid),
		ModTime: time.Unix(stat.Mtim.Unix()),
	}
	switch typeOf(stat) {
	case Directory:
		return p.directory(file, header, depth)
	case Regular:
		return p.regular(file, header, stat)
	case Link:
		target, err := readLink(file)
		if err != nil {
			return fmt.Errorf("read link %s: %w", name, err)
		}
		header.Typeflag, header.Linkname = tar.TypeSymlink, target
		return p.write(header)
	case FIFO:
		header.Typeflag = tar.TypeFifo
		return p.write(header)
	case Other:
	}
	p.done.Skipped++
	return nil
}

func (p *packer) write(header *tar.Header) error {
	if err := p.out.WriteHeader(header); err != nil {
		if errors.Is(err, tar.ErrHeader) {
			p.done.Skipped++ // a name that tar cannot carry
			return nil
		}
		return err
	}
	p.done.Entries++
	return nil
}

func (p *packer) directory(file *os.File, header *tar.Header, depth int) error {
	if depth > maxDepth {
		return problem.New(problem.FileNotAllowed, "%.64s… is nested more than %d levels deep", header.Name, maxDepth).WithField("path").
			WithHint("copy a part of it at a time")
	}
	name := header.Name
	header.Typeflag, header.Name = tar.TypeDir, strings.TrimSuffix(name, "/")+"/"
	if err := p.root.admit(file, name); err != nil {
		if depth == 0 || problem.Of(err).Reason != problem.FileNotAllowed {
			return err
		}
		return p.write(header) // as the empty directory that it is mounted on
	}
	dir, err := openAt(int(file.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY, beneath)
	if err != nil {
		return explain(name, err)
	}
	defer dir.Close() //nolint:errcheck // nothing was written
	header.PAXRecords = attributes(dir)
	if err := p.write(header); err != nil {
		return err
	}
	for {
		names, err := dir.Readdirnames(namesAtOnce)
		for _, inner := range names {
			if err := p.below(dir, inner, join(name, inner), depth); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) { // ENOENT: it was removed meanwhile
			return nil
		}
		if err != nil {
			return fmt.Errorf("read directory %s: %w", name, err)
		}
	}
}

// join is the name in the archive of what is in a directory.
func join(dir, inner string) string {
	if dir == "." {
		return inner
	}
	return dir + "/" + inner
}

// below writes what a directory has under a name, if it still has it.
func (p *packer) below(dir *os.File, inner, name string, depth int) error {
	file, err := openAt(int(dir.Fd()), inner, unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		p.done.Skipped++
		return nil
	}
	defer file.Close() //nolint:errcheck // O_PATH: nothing can be lost
	stat, err := status(file)
	if err != nil {
		return fmt.Errorf("inspect %s: %w", name, err)
	}
	return p.entry(file, &stat, name, depth+1)
}

func (p *packer) regular(file *os.File, header *tar.Header, stat *unix.Stat_t) error {
	header.Typeflag, header.Size = tar.TypeReg, stat.Size
	if kernel, err := ofKernel(file); err != nil || kernel {
		p.done.Skipped++ // a file of /proc, mounted elsewhere
		return nil
	}
	if stat.Nlink > 1 {
		id := fileID{stat.Dev, stat.Ino}
		if first, again := p.names[id]; again {
			header.Typeflag, header.Linkname, header.Size = tar.TypeLink, first, 0
			return p.write(header)
		}
	}
	// What a lease or a broken file system keeps from being opened is left out.
	open, err := reopen(file, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		p.done.Skipped++
		return nil
	}
	defer open.Close() //nolint:errcheck // nothing was written
	header.PAXRecords = attributes(open)
	entries := p.done.Entries
	if err := p.write(header); err != nil || p.done.Entries == entries {
		return err
	}
	// Not before it is in the archive: a link to what is not cannot be taken out.
	if stat.Nlink > 1 && len(p.names) < maxHardLink {
		p.names[fileID{stat.Dev, stat.Ino}] = header.Name
	}
	return p.content(open, header)
}

// content writes as many bytes as the header says, however many there are now.
// archive/tar writes no entries with holes, so they are zeros; but the disk is
// not asked for them.
func (p *packer) content(open *os.File, header *tar.Header) error {
	file, left := holes.NewReader(open), header.Size
	for left > 0 {
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
		n, err := file.Read(p.buffer[:min(left, int64(len(p.buffer)))])
		if _, err := p.out.Write(p.buffer[:n]); err != nil {
			return err
		}
		left -= int64(n)
		p.done.Bytes += int64(n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", header.Name, err)
		}
	}
	if n, err := file.Read(p.buffer[:1]); left > 0 || err == nil && n > 0 {
		p.done.Changed++
	}
	clear(p.buffer)
	for left > 0 {
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
		n, err := p.out.Write(p.buffer[:min(left, int64(len(p.buffer)))])
		if err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}
