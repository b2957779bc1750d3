package runtime

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/remotegpu/remotegpu/internal/atomicfile"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

// etcFiles writes the files that make an environment know its own name and its
// name servers, one directory per environment, and binds them into /etc.
type etcFiles struct {
	dir string
}

// write makes hostname, hosts and resolv.conf of one environment and returns
// their mounts. Writing them again is harmless.
func (e etcFiles) write(id, hostname string, address, address6 netip.Addr, servers []netip.Addr, search []string) ([]volume.Staged, error) {
	dir := filepath.Join(e.dir, id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make directory of environment %s: %w", id, err)
	}
	var resolv strings.Builder
	for _, server := range servers {
		fmt.Fprintf(&resolv, "nameserver %s\n", server)
	}
	if len(search) > 0 {
		fmt.Fprintf(&resolv, "search %s\n", strings.Join(search, " "))
	}
	hosts := fmt.Sprintf("127.0.0.1 localhost\n%s %s\n", address, hostname)
	if address6.IsValid() {
		hosts = fmt.Sprintf("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n%s %s\n%s %s\n", address, hostname, address6, hostname)
	}
	contents := []struct{ name, target, text string }{
		{"hostname", "/etc/hostname", hostname + "\n"},
		{"hosts", "/etc/hosts", hosts},
		{"resolv.conf", "/etc/resolv.conf", resolv.String()},
	}
	mounts := make([]volume.Staged, 0, len(contents))
	for _, file := range contents {
		path := filepath.Join(dir, file.name)
		// The inode is bound into the container: keep it when nothing changes.
		// Each start comes by here, so a host that dies needs no sync before.
		if !holds(path, file.text) {
			if err := atomicfile.WriteUnsynced(path, []byte(file.text), 0o644); err != nil {
				return nil, err
			}
		}
		mounts = append(mounts, volume.Staged{
			FSType: "bind", Source: path, Target: file.target,
			Options: []string{"rbind", "rw", "nosuid", "nodev", "noexec"},
		})
	}
	return mounts, nil
}

// holds says whether a file holds just that text. The tenant can write the file
// and make it any size, so no more is read than the text is long.
func holds(path, text string) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() != int64(len(text)) {
		return false
	}
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close() //nolint:errcheck // it is only read
	old, err := io.ReadAll(io.LimitReader(file, int64(len(text))+1))
	return err == nil && string(old) == text
}

// remove removes the files of one environment.
func (e etcFiles) remove(id string) error {
	if err := os.RemoveAll(filepath.Join(e.dir, id)); err != nil {
		return fmt.Errorf("remove directory of environment %s: %w", id, err)
	}
	return nil
}

// list names the environments that have files.
func (e etcFiles) list() ([]string, error) {
	entries, err := os.ReadDir(e.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list environment directories: %w", err)
	}
	var ids []string
	for _, entry := range entries {
		ids = append(ids, entry.Name())
	}
	return ids, nil
}
