package buildkit

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"time"

	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
)

// buildContext serves a directory of any file system as a build context.
// Embedded files have neither owner, mode nor time, so all belong to root,
// those that begin with "#!" are executable and the time is a fixed one, which
// keeps BuildKit's cache keys stable.
type buildContext struct {
	source fs.FS
}

var epoch = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

func newContext(source fs.FS) fsutil.FS { return &buildContext{source: source} }

// Walk calls visit for everything beneath target but the root.
func (c *buildContext) Walk(ctx context.Context, target string, visit fs.WalkDirFunc) error {
	target = path.Clean(filepath.ToSlash(target))
	if target == "/" {
		target = "."
	}
	return fs.WalkDir(c.source, target, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return visit(filepath.FromSlash(name), nil, err)
		}
		if name == "." {
			return ctx.Err()
		}
		stat, err := c.stat(name, entry)
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return visit(filepath.FromSlash(name), &fsutil.DirEntryInfo{Stat: stat}, nil)
	})
}

// Open opens a file.
func (c *buildContext) Open(name string) (io.ReadCloser, error) {
	return c.source.Open(path.Clean(filepath.ToSlash(name)))
}

func (c *buildContext) stat(name string, entry fs.DirEntry) (*types.Stat, error) {
	stat := &types.Stat{Path: filepath.FromSlash(name), ModTime: epoch.UnixNano()}
	if entry.IsDir() {
		stat.Mode = uint32(fs.ModeDir | 0o755)
		return stat, nil
	}
	if !entry.Type().IsRegular() {
		return nil, fmt.Errorf("read build context: %s is neither a file nor a directory", name)
	}
	content, err := fs.ReadFile(c.source, name)
	if err != nil {
		return nil, fmt.Errorf("read build context: %w", err)
	}
	stat.Size = int64(len(content))
	stat.Mode = 0o644
	if bytes.HasPrefix(content, []byte("#!")) {
		stat.Mode = 0o755
	}
	return stat, nil
}
