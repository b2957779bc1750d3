package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/remotegpu/remotegpu/internal/rootfs"
)

// WithRoot calls use with the root of a volume and returns its error. The
// volume cannot be deleted meanwhile. VOLUME_NOT_FOUND.
func (m *Manager) WithRoot(ctx context.Context, name string, use func(ctx context.Context, root *rootfs.Root) error) (err error) {
	root, err := m.openRoot(ctx, name)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, root.Close())
		m.copied.leave(name)
	}()
	return use(ctx, root)
}

// openRoot counts the copy under the lock that a delete looks at the count
// under.
func (m *Manager) openRoot(ctx context.Context, name string) (*rootfs.Root, error) {
	if checkVolumeName(name) != nil {
		return nil, notFound(name)
	}
	unlock, err := m.locks.Lock(ctx, "volume/"+name)
	if err != nil {
		return nil, fmt.Errorf("open volume %s: %w", name, err)
	}
	defer unlock()
	// Nothing above the data directory is a tenant's.
	root, err := rootfs.Open(filepath.Join(m.volumesDir(), name, "data"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFound(name)
	}
	if err != nil {
		return nil, fmt.Errorf("open volume %s: %w", name, err)
	}
	m.copied.enter(name)
	return root, nil
}
