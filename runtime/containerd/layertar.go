package containerd

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/holes"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// Marks of an image's layer (OCI image-spec, layer.md, "Whiteouts").
const (
	whiteout       = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// Extended attributes by which overlayfs keeps its own state (kernel,
// Documentation/filesystems/overlayfs.rst).
const (
	overlayAttr     = "trusted.overlay."
	overlayOpaque   = overlayAttr + "opaque"
	overlayRedirect = overlayAttr + "redirect"
	overlayMetacopy = overlayAttr + "metacopy"
	trustedAttr     = "trusted."
	paxAttr         = "SCHILY.xattr." // how tar carries extended attributes
)

// writeLayer writes the directories of overlayfs layers, uppermost first, as
// one layer of an image: what a file system that has none of them must become
// to show what it shows with all of them. The directories must not change
// meanwhile. SNAPSHOT_NOT_COPYABLE.
//
// below are the layers that several ones are merged for. What hides nothing
// there must not be written: overlayfs lists it in directories that it does not
// merge.
//
// The writers of containerd and BuildKit drop all extended attributes but
// capabilities, so this is one of our own.
func writeLayer(ctx context.Context, w io.Writer, dirs, below []string) error {
	l := newLayerWriter(w, dirs)
	l.buffer = make([]byte, 1<<20)
	if err := l.directory(ctx, "", dirs, below); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	if err := l.tar.Close(); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	return nil
}

// measureLayer is how many bytes of files writeLayer would write, in bytes: of a
// file with holes its whole length, as they become zeros.
func measureLayer(ctx context.Context, dirs, below []string) (int64, error) {
	l := newLayerWriter(io.Discard, dirs)
	l.measuring = true
	if err := l.directory(ctx, "", dirs, below); err != nil {
		return 0, fmt.Errorf("measure layer: %w", err)
	}
	return l.size, nil
}

// A directory is written in the order of its names, so that the same files are
// the same layer: they are kept until then. namesAtOnce is how many are read at a
// time, mostNames how many are kept of a directory and of those that it lies in; a
// tenant can make more than there is memory for.
const (
	namesAtOnce = 1024
	mostNames   = 1_000_000
)

type inode struct{ device, number uint64 }

type layerWriter struct {
	tar     *tar.Writer
	names   int // that are kept
	most    int // how many may be
	merging bool
	links   map[inode]string // first name of files that have several
	buffer  []byte

	measuring bool // no contents: size is what they would be
	size      int64
}

func newLayerWriter(w io.Writer, dirs []string) *layerWriter {
	return &layerWriter{tar: tar.NewWriter(w), most: mostNames, merging: len(dirs) > 1, links: make(map[inode]string)}
}

// notCopyable says that a file cannot be put into a layer.
func notCopyable(name, format string, args ...any) *problem.Problem {
	return problem.New(problem.SnapshotNotCopyable, "/%s: %s", name, fmt.Sprintf(format, args...)).
		WithHint("remove or rename it; or stop the environment and take the snapshot then: nothing is copied in that case")
}

// directory writes what is in a directory that lies in several layers, and in
// those below.
func (l *layerWriter) directory(ctx context.Context, name string, at, below []string) error {
	names, err := l.namesIn(ctx, name, at)
	if err != nil {
		return err
	}
	l.names += len(names)
	defer func() { l.names -= len(names) }()
	for _, base := range names {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := l.entry(ctx, path.Join(name, base), base, at, below); err != nil {
			return err
		}
	}
	return nil
}

// namesIn are the names in a directory that lies in several layers, sorted.
func (l *layerWriter) namesIn(ctx context.Context, name string, at []string) ([]string, error) {
	found := make(map[string]struct{})
	for _, path := range at {
		dir, err := os.Open(path)
		if errors.Is(err, unix.ENAMETOOLONG) {
			return nil, notCopyable(name, "the path is too long").WithCause(err)
		}
		if err != nil {
			return nil, err
		}
		err = l.readNames(ctx, name, dir, found)
		_ = dir.Close() // it was only read
		if err != nil {
			return nil, err
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

func (l *layerWriter) readNames(ctx context.Context, name string, dir *os.File, found map[string]struct{}) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		some, err := dir.Readdirnames(namesAtOnce)
		for _, base := range some {
			found[base] = struct{}{}
		}
		if l.names+len(found) > l.most {
			return notCopyable(name, "there are more than %d files in it and in the directories that it lies in", l.most)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// entry writes one name of a directory: the uppermost that there is, and where
// that is a directory, all that is merged with it.
func (l *layerWriter) entry(ctx context.Context, name, base string, at, below []string) error {
	if strings.HasPrefix(base, whiteout) {
		return notCopyable(name, "layers of images cannot hold names that begin with %s", whiteout)
	}
	found, err := stack(name, base, at)
	if err != nil || len(found.paths) == 0 {
		return err
	}
	if !found.isDir {
		if _, _, hidden := descend(below, base); l.merging && isWhiteout(&found.top) && hidden == nil {
			return nil
		}
		return l.file(ctx, name, found.paths[0], &found.top)
	}
	header, err := l.header(name, found.paths[0], &found.top)
	if err != nil {
		return err
	}
	header.Name += "/"
	if err := l.tar.WriteHeader(header); err != nil {
		return notCopyable(name, "it cannot be put into an archive").WithCause(err)
	}
	switch {
	case found.opaque:
		below = nil
		if err := l.mark(path.Join(name, whiteoutOpaque), &found.top); err != nil {
			return err
		}
	case l.merging:
		below, _, _ = descend(below, base)
	}
	return l.directory(ctx, name, found.paths, below)
}

// stacked is what one name means in several layers.
type stacked struct {
	paths  []string // the uppermost one, and the directories that are merged with it
	top    unix.Stat_t
	isDir  bool
	opaque bool // nothing below is merged with it
}

func stack(name, base string, at []string) (found stacked, err error) {
	for _, dir := range at {
		file := filepath.Join(dir, base)
		var st unix.Stat_t
		if err := unix.Lstat(file, &st); errors.Is(err, unix.ENOENT) {
			continue
		} else if errors.Is(err, unix.ENAMETOOLONG) {
			return found, notCopyable(name, "the path is too long").WithCause(err)
		} else if err != nil {
			return found, fmt.Errorf("inspect %s: %w", file, err)
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		switch {
		case len(found.paths) == 0:
			found.top, found.isDir = st, isDir
		case !isDir:
			found.opaque = true // it hides what is below
			return found, nil
		}
		found.paths = append(found.paths, file)
		if !isDir {
			return found, nil
		}
		value, err := attribute(file, overlayOpaque)
		if found.opaque = string(value) == "y"; found.opaque || err != nil {
			return found, err
		}
	}
	return found, nil
}

func isWhiteout(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

// mark writes a file that only means something by its name.
func (l *layerWriter) mark(name string, st *unix.Stat_t) error {
	return l.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Uid: int(st.Uid), Gid: int(st.Gid), Mode: 0o600, ModTime: modified(st), Format: tar.FormatPAX,
	})
}

// file writes what is no directory.
func (l *layerWriter) file(ctx context.Context, name, file string, st *unix.Stat_t) error {
	kind := st.Mode & unix.S_IFMT
	switch {
	case isWhiteout(st):
		return l.mark(path.Join(path.Dir(name), whiteout+path.Base(name)), st)
	case kind == unix.S_IFSOCK:
		return nil // it belongs to a process, and archives have none
	}
	header, err := l.header(name, file, st)
	if err != nil {
		return err
	}
	id := inode{st.Dev, st.Ino}
	if first, found := l.links[id]; found {
		header.Typeflag, header.Linkname, header.Size = tar.TypeLink, first, 0
	} else if st.Nlink > 1 {
		l.links[id] = name
	}
	if l.measuring {
		l.size += min(header.Size, math.MaxInt64-l.size)
		header.Size = 0
	}
	if err := l.tar.WriteHeader(header); err != nil {
		return notCopyable(name, "it cannot be put into an archive").WithCause(err)
	}
	if header.Typeflag != tar.TypeReg || header.Size == 0 {
		return nil
	}
	return l.content(ctx, file, st)
}

func (l *layerWriter) content(ctx context.Context, file string, st *unix.Stat_t) error {
	source, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer source.Close()              //nolint:errcheck // it is only read
	reader := holes.NewReader(source) // what is not read from the disk keeps nobody frozen
	for left := st.Size; left > 0; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := reader.Read(l.buffer[:min(left, int64(len(l.buffer)))])
		if n == 0 && err != nil {
			return fmt.Errorf("read %s, %d bytes before its end: %w", file, left, err)
		}
		if _, err := l.tar.Write(l.buffer[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

// header describes a file with its extended attributes.
func (l *layerWriter) header(name, file string, st *unix.Stat_t) (*tar.Header, error) {
	h := &tar.Header{
		Name: name, Uid: int(st.Uid), Gid: int(st.Gid), Mode: int64(st.Mode & 0o7777), ModTime: modified(st),
		Format: tar.FormatPAX, PAXRecords: make(map[string]string),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case unix.S_IFLNK:
		target, err := os.Readlink(file)
		if err != nil {
			return nil, err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	default:
		return nil, notCopyable(name, "archives have no files of its kind")
	}
	names, err := attributes(file)
	if err != nil {
		return nil, err
	}
	for _, key := range names {
		switch {
		case key == overlayRedirect, key == overlayMetacopy:
			return nil, notCopyable(name, "overlayfs keeps a part of it in another layer (%s)", key)
		case strings.HasPrefix(key, trustedAttr):
			continue // the kernel's or the node's, none that an environment can set
		}
		value, err := attribute(file, key)
		if err != nil {
			return nil, err
		}
		h.PAXRecords[paxAttr+key] = string(value)
	}
	return h, nil
}

func modified(st *unix.Stat_t) time.Time { return time.Unix(st.Mtim.Sec, st.Mtim.Nsec) }

// attributes names the extended attributes of a file, which may be a link.
func attributes(file string) ([]string, error) {
	for size := 256; ; size *= 4 {
		list := make([]byte, size)
		n, err := unix.Llistxattr(file, list)
		switch {
		case errors.Is(err, unix.ERANGE) && size < 1<<20:
			continue
		case errors.Is(err, unix.ENOTSUP):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("list extended attributes of %s: %w", file, err)
		}
		return strings.FieldsFunc(string(list[:n]), func(r rune) bool { return r == 0 }), nil
	}
}

// attribute reads an extended attribute; nil when there is none.
func attribute(file, key string) ([]byte, error) {
	for size := 256; ; size *= 16 {
		value := make([]byte, size)
		n, err := unix.Lgetxattr(file, key, value)
		switch {
		case errors.Is(err, unix.ERANGE) && size < 1<<20:
			continue
		case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("read extended attribute %s of %s: %w", key, file, err)
		}
		return value[:n], nil
	}
}
