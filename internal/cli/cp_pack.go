package cli

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/remotegpu/remotegpu/internal/holes"
)

// localPack writes files from here as a tar stream.
type localPack struct {
	root    string // what is copied
	name    string // its name in the stream; ".": what is in it
	info    os.FileInfo
	archive bool // with owners
	skipped int  // sockets, devices, FIFOs
	changed int  // files that became shorter or longer meanwhile

	names map[fileID]string // in the stream, of files with several names
}

// fileID tells files apart.
type fileID struct{ device, inode uint64 }

// maxHardLinks is how many files with several names are remembered: those
// after them are copied once for each name.
const maxHardLinks = 100_000

func (p *localPack) write(out io.Writer) error {
	writer := tar.NewWriter(out)
	if err := p.entry(writer, p.root, p.name, p.info); err != nil {
		return err
	}
	return writer.Close()
}

func (p *localPack) warn(a *app) {
	if p.skipped > 0 {
		a.say("Warning: %d devices, sockets or FIFOs were left out", p.skipped)
	}
	if p.changed > 0 {
		a.say("Warning: %d files changed while they were copied", p.changed)
	}
}

func (p *localPack) entry(writer *tar.Writer, local, name string, info os.FileInfo) error {
	link := ""
	switch mode := info.Mode(); {
	case mode.IsRegular(), mode.IsDir():
	case mode&fs.ModeSymlink != 0:
		var err error
		if link, err = os.Readlink(local); err != nil {
			return fmt.Errorf("read link: %w", err)
		}
	default:
		p.skipped++
		return nil
	}
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return fmt.Errorf("describe %s: %w", local, err)
	}
	header.Name, header.Format, header.Uname, header.Gname = name, tar.FormatPAX, "", ""
	if !p.archive {
		header.Uid, header.Gid, header.Mode = 0, 0, header.Mode&0o1777
	}
	if info.IsDir() {
		header.Name += "/"
		if err := writer.WriteHeader(header); err != nil {
			return err
		}
		return p.below(writer, local, name)
	}
	if !info.Mode().IsRegular() {
		return writer.WriteHeader(header)
	}
	return p.file(writer, local, header)
}

func (p *localPack) below(writer *tar.Writer, local, name string) error {
	entries, err := os.ReadDir(local)
	if err != nil {
		return fmt.Errorf("read directory: %w", err)
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return fmt.Errorf("look at %s: %w", filepath.Join(local, entry.Name()), err)
		}
		err = p.entry(writer, filepath.Join(local, entry.Name()), path.Join(name, entry.Name()), info)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // removed after the look: it is left out, or empty
			return err
		}
	}
	return nil
}

// file writes as many bytes as the header says, whatever the file has by now.
func (p *localPack) file(writer *tar.Writer, local string, header *tar.Header) error {
	file, err := os.Open(local)
	if err != nil {
		return fmt.Errorf("read file: %w", err)
	}
	defer file.Close() //nolint:errcheck // nothing was written
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("read file: %w", err)
	}
	header.Size = info.Size()
	if id, several := identityOf(info); several {
		if first, again := p.names[id]; again {
			header.Typeflag, header.Linkname, header.Size = tar.TypeLink, first, 0
			return writer.WriteHeader(header)
		}
		if p.names == nil {
			p.names = make(map[fileID]string)
		}
		if len(p.names) < maxHardLinks {
			p.names[id] = header.Name
		}
	}
	if err := writer.WriteHeader(header); err != nil {
		return err
	}
	n, err := io.CopyN(writer, holes.NewReader(file), header.Size)
	if errors.Is(err, io.EOF) {
		p.changed++
		_, err = io.CopyN(writer, zeros{}, header.Size-n)
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", local, err)
	}
	return nil
}

// zeros reads as zeros without end.
type zeros struct{}

// Read implements io.Reader.
func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
