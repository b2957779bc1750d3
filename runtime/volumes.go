package runtime

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/remotegpu/remotegpu/internal/rootfs"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

// sizeTime bounds what measuring the volumes of one answer may take.
const sizeTime = 20 * time.Second

// NamedVolumes keeps the node's named volumes; *volume.Manager implements it.
type NamedVolumes interface {
	// Create makes an empty one. VOLUME_NAME_INVALID, VOLUME_EXISTS.
	Create(ctx context.Context, name string) (volume.Info, error)
	// Get tells about one, VOLUME_NOT_FOUND.
	Get(ctx context.Context, name string) (volume.Info, error)
	// List tells about all, by name.
	List(ctx context.Context) ([]volume.Info, error)
	// Size is how many bytes its files take; not measured when that took too
	// long. VOLUME_NOT_FOUND.
	Size(ctx context.Context, name string) (size int64, measured bool, err error)
	// WithRoot calls use with the root of one and returns its error; the volume
	// cannot be deleted meanwhile. VOLUME_NOT_FOUND.
	WithRoot(ctx context.Context, name string, use func(ctx context.Context, root *rootfs.Root) error) error
	// Delete removes one unless usedBy names users; it asks while nobody can
	// stage the volume. VOLUME_NOT_FOUND, VOLUME_IN_USE.
	Delete(ctx context.Context, name string, usedBy func(context.Context) ([]string, error)) error
}

// VolumeUse is a named volume and who uses it.
type VolumeUse struct {
	volume.Info
	UsedBy []string // ids of environments, oldest first
	Size   int64    // bytes; -1 when not measured
}

// CreateVolume makes an empty volume.
func (m *Manager) CreateVolume(ctx context.Context, name string) (VolumeUse, error) {
	info, err := m.cfg.NamedVolumes.Create(ctx, name)
	return VolumeUse{Info: info, Size: -1}, err
}

// Volume tells about one volume, with its size.
func (m *Manager) Volume(ctx context.Context, name string) (VolumeUse, error) {
	info, err := m.cfg.NamedVolumes.Get(ctx, name)
	if err != nil {
		return VolumeUse{}, err
	}
	volumes, err := m.withUsers(ctx, []volume.Info{info})
	if err != nil {
		return VolumeUse{}, err
	}
	if err := m.MeasureVolumes(ctx, volumes); err != nil {
		return VolumeUse{}, err
	}
	return volumes[0], nil
}

// Volumes tells about all volumes, by name, without their sizes.
func (m *Manager) Volumes(ctx context.Context) ([]VolumeUse, error) {
	infos, err := m.cfg.NamedVolumes.List(ctx)
	if err != nil {
		return nil, err
	}
	return m.withUsers(ctx, infos)
}

// DeleteVolume removes a volume that no environment names. An environment is
// in the store before it stages its mounts, and staging waits for the lock
// that a delete looks for users under: it is seen here, or it gets a new
// volume.
func (m *Manager) DeleteVolume(ctx context.Context, name string) error {
	return m.cfg.NamedVolumes.Delete(ctx, name, func(ctx context.Context) ([]string, error) {
		users, err := m.volumeUsers(ctx)
		if err != nil {
			return nil, err
		}
		var names []string
		for _, env := range users[name] {
			names = append(names, fmt.Sprintf("%s (%s)", env.Name, env.ID))
		}
		return names, nil
	})
}

// MeasureVolumes sets the sizes, as far as time allows. One caller walks at a
// time.
func (m *Manager) MeasureVolumes(ctx context.Context, volumes []VolumeUse) error {
	walking, cancel := context.WithTimeout(ctx, sizeTime)
	defer cancel()
	unlock, err := m.measuring.Lock(walking, "disk")
	if err != nil {
		return context.Cause(ctx) // nil when others took all the time
	}
	defer unlock()
	for i := range volumes {
		size, measured, err := m.cfg.NamedVolumes.Size(walking, volumes[i].Name)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		if measured {
			volumes[i].Size = size
		}
	}
	return nil
}

func (m *Manager) withUsers(ctx context.Context, infos []volume.Info) ([]VolumeUse, error) {
	users, err := m.volumeUsers(ctx)
	if err != nil {
		return nil, err
	}
	volumes := make([]VolumeUse, 0, len(infos))
	for _, info := range infos {
		use := VolumeUse{Info: info, Size: -1}
		for _, env := range users[info.Name] {
			use.UsedBy = append(use.UsedBy, env.ID)
		}
		volumes = append(volumes, use)
	}
	return volumes, nil
}

// volumeUsers are the environments by the volumes that they name, stopped ones
// included. One whose create failed holds nothing and cannot be started.
func (m *Manager) volumeUsers(ctx context.Context) (map[string][]*Environment, error) {
	envs, _, err := m.cfg.Store.Environments(ctx, Filter{})
	if err != nil {
		return nil, err
	}
	users := make(map[string][]*Environment)
	for _, env := range envs {
		for _, mount := range slices.Concat(env.Spec.Mounts, env.Effective().Mounts) {
			if env.Held && mount.Type == volume.Volume && !slices.Contains(users[mount.Source], env) {
				users[mount.Source] = append(users[mount.Source], env)
			}
		}
	}
	return users, nil
}
