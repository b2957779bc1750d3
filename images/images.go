// Package images carries the sources of the images that a node can build by
// itself: a directory each, with a Dockerfile in it.
package images

import (
	"embed"
	"fmt"
	"io/fs"
	"sort"

	"github.com/containerd/errdefs"
)

// DesktopBase is the source of the image that desktops are made from.
const DesktopBase = "desktop-base"

// DefaultBase is what the ARG BASE of every source says when nobody sets it.
const DefaultBase = "docker.io/library/ubuntu:22.04"

//go:embed all:desktop-base
var sources embed.FS

// Sources names all sources, sorted.
func Sources() []string {
	entries, err := fs.ReadDir(sources, ".")
	if err != nil { // cannot be: the directory is in the program
		return nil
	}
	names := make([]string, 0, len(entries))
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	sort.Strings(names)
	return names
}

// Source returns the directory of one source, NotFound. Its files have no
// modes; those that begin with "#!" are meant to be executable.
func Source(name string) (fs.FS, error) {
	if info, err := fs.Stat(sources, name); err != nil || !info.IsDir() || name == "." {
		return nil, fmt.Errorf("find image source %q: %w", name, errdefs.ErrNotFound)
	}
	return fs.Sub(sources, name)
}
