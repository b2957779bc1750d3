package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// namedFile is a file here that the caller named. Links at the end of the name
// are followed, as cp(1) does: whoever named it has made them, or knows them.
type namedFile struct {
	path       string // as it was named
	dir, base  string // where the links lead
	through    bool   // a device, FIFO or descriptor: written to, never replaced
	descriptor int    // of this program, when it is one (/dev/stdout); else -1
}

// maxLinks is how many links are followed, as in Linux (path_resolution(7)).
const maxLinks = 40

// findNamed looks at what has a name. It may be missing, and is no directory.
func findNamed(path string) (*namedFile, error) {
	n := &namedFile{path: path, descriptor: -1}
	last := path
	for followed := 0; ; followed++ {
		if n.descriptor = ownDescriptor(last); n.descriptor >= 0 {
			n.through = true
			return n, nil
		}
		link, err := os.Readlink(last)
		if err != nil {
			break // no link, or nothing is there
		}
		if followed == maxLinks {
			return nil, usagef("name the file itself", "%s goes through too many links", path)
		}
		if !filepath.IsAbs(link) {
			// Not cleaned: what dots behind a link mean the system knows.
			dir, _ := filepath.Split(last)
			link = dir + link
		}
		last = link
	}
	n.dir, n.base = filepath.Split(last)
	if n.dir == "" {
		n.dir = "."
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("look at %s: %w", path, err)
	case info.IsDir():
		return nil, usagef("name a file in it", "%s is a directory", path)
	case info.Mode()&fs.ModeSocket != 0:
		return nil, usagef("name a file", "%s is a socket", path)
	default:
		n.through = special(info)
	}
	if n.base == "" && !n.through {
		return nil, usagef("leave the slash out", "there is no directory %s", path)
	}
	return n, nil
}

// special says whether a file is a device, a FIFO or a socket.
func special(info fs.FileInfo) bool {
	return info.Mode()&(fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket) != 0
}

// root is the directory that the file is in.
func (n *namedFile) root() (*os.Root, error) {
	root, err := os.OpenRoot(n.dir)
	if err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	return root, nil
}

// pass writes to a device, a FIFO or a descriptor. It waits for a FIFO's
// reader, as cp does, until ctx ends.
func (n *namedFile) pass(ctx context.Context, write func(io.Writer) error) error {
	file, err := n.open(ctx)
	if err != nil {
		return err
	}
	// What cannot be interrupted (a descriptor that was there) ends with the program.
	stop := context.AfterFunc(ctx, func() { _ = file.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	err = errors.Join(write(file), file.Close())
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (n *namedFile) open(ctx context.Context) (*os.File, error) {
	if n.descriptor >= 0 {
		return duplicate(n.descriptor, n.path)
	}
	type opened struct {
		file *os.File
		err  error
	}
	result := make(chan opened, 1)
	go func() { // it goes with the program when nobody reads
		file, err := os.OpenFile(n.path, os.O_WRONLY, 0)
		result <- opened{file, err}
	}()
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case o := <-result:
		if o.err != nil {
			return nil, o.err
		}
		info, err := o.file.Stat()
		if err == nil && !special(info) {
			err = fmt.Errorf("%s became another file meanwhile", n.path)
		}
		if err != nil {
			return nil, errors.Join(err, o.file.Close())
		}
		return o.file, nil
	}
}

// savedFile says how writeNamed saves.
type savedFile struct {
	mode    fs.FileMode // of a new file
	private bool        // also of one that is there; it keeps its own otherwise
}

// writeNamed writes a file that the caller named. A plain file is there when
// it is whole, else what was there is as it was; a device, a FIFO or a
// descriptor is written to.
func writeNamed(ctx context.Context, path string, how savedFile, write func(io.Writer) error) error {
	const hint = "name a file in a directory that can be written"
	named, err := findNamed(path)
	if err != nil {
		return err
	}
	if named.through {
		return named.pass(ctx, write)
	}
	root, err := named.root()
	if err != nil {
		return usagef(hint, "%v", err)
	}
	defer root.Close() //nolint:errcheck // a directory: nothing can be lost
	return replaceIn(root, named.base, false, func(at string, old fs.FileInfo) error {
		file, err := root.OpenFile(at, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return usagef(hint, "%v", err)
		}
		err = write(file)
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
		if old != nil && !how.private {
			return keepAccess(root, at, old)
		}
		return root.Chmod(at, how.mode)
	})
}
