package runtime

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
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
	// Bound tells which environments have which volume staged, their ids by its
	// name.
	Bound(ctx context.Context) (map[string][]string, error)
	// Delete removes one unless usedBy names users; it asks while nobody can
	// stage the volume. VOLUME_NOT_FOUND, VOLUME_IN_USE.
	Delete(ctx context.Context, name string, usedBy func(context.Context) ([]string, error)) error
	// Deleted tells where the files are of volumes that were deleted and not
	// removed to the last one, unless somebody does that now.
	Deleted(ctx context.Context) ([]string, error)
	// RemoveDeleted removes those, until ctx ends: the next call goes on.
	RemoveDeleted(ctx context.Context) error
}

// VolumeUse is a named volume and who uses it.
type VolumeUse struct {
	volume.Info
	UsedBy []string // ids of environments, oldest first; then of containers that the database does not know
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
	volumes, gone, err := m.measureVolumes(ctx, volumes)
	if err := cmp.Or(err, gone); err != nil {
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

// DeleteVolume removes a volume that no environment names and no process has. An environment is
// in the store before it stages its mounts, and staging waits for the lock
// that a delete looks for users under: it is seen here, or it gets a new
// volume.
func (m *Manager) DeleteVolume(ctx context.Context, name string) error {
	unknown := false
	err := m.cfg.NamedVolumes.Delete(ctx, name, func(ctx context.Context) ([]string, error) {
		users, err := m.volumeUsers(ctx)
		if err != nil {
			return nil, err
		}
		var names []string
		for _, user := range users[name] {
			names = append(names, user.said)
			unknown = unknown || user.unknown
		}
		return names, nil
	})
	if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
		m.rest.disturb() // if its files are left, a pass removes them
	}
	if unknown && err != nil {
		return problem.Of(err).WithHint("if the database was lost or restored, take out of that container what you need and remove it with ctr; then: remotegpu node reconcile")
	}
	return err
}

// MeasureVolumes sets the sizes, as far as time allows, and leaves out what was
// deleted meanwhile.
func (m *Manager) MeasureVolumes(ctx context.Context, volumes []VolumeUse) ([]VolumeUse, error) {
	there, _, err := m.measureVolumes(ctx, volumes)
	return there, err
}

// measureVolumes returns those that are there still, and in gone the
// VOLUME_NOT_FOUND of another. One caller walks at a time.
func (m *Manager) measureVolumes(ctx context.Context, volumes []VolumeUse) (there []VolumeUse, gone, err error) {
	walking, cancel := context.WithTimeout(ctx, sizeTime)
	defer cancel()
	unlock, err := m.measuring.Lock(walking, "disk")
	if err != nil {
		return volumes, nil, context.Cause(ctx) // nil when others took all the time
	}
	defer unlock()
	for _, v := range volumes {
		size, measured, err := m.cfg.NamedVolumes.Size(walking, v.Name)
		switch {
		case ctx.Err() != nil:
			return nil, nil, context.Cause(ctx)
		case err != nil && problem.Of(err).Reason == problem.VolumeNotFound:
			gone = err
			continue
		case err != nil:
			return nil, nil, err
		}
		if measured {
			v.Size = size
		}
		there = append(there, v)
	}
	return there, gone, nil
}

func (m *Manager) withUsers(ctx context.Context, infos []volume.Info) ([]VolumeUse, error) {
	users, err := m.volumeUsers(ctx)
	if err != nil {
		return nil, err
	}
	volumes := make([]VolumeUse, 0, len(infos))
	for _, info := range infos {
		use := VolumeUse{Info: info, Size: -1}
		for _, user := range users[info.Name] {
			use.UsedBy = append(use.UsedBy, user.id)
		}
		volumes = append(volumes, use)
	}
	return volumes, nil
}

// volumeUser is who uses a volume.
type volumeUser struct {
	id      string
	said    string // in words for people
	unknown bool   // to the database
}

// volumeUsers are those who use volumes, by these: the environments that name
// them, stopped ones included, and what the database does not know of, as after
// it was lost or restored, and has them staged. One whose create failed holds
// nothing and cannot be started.
func (m *Manager) volumeUsers(ctx context.Context) (map[string][]volumeUser, error) {
	envs, _, err := m.cfg.Store.Environments(ctx, Filter{})
	if err != nil {
		return nil, err
	}
	users := make(map[string][]volumeUser)
	add := func(volume string, user volumeUser) {
		if !slices.ContainsFunc(users[volume], func(u volumeUser) bool { return u.id == user.id }) {
			users[volume] = append(users[volume], user)
		}
	}
	named := func(env *Environment) volumeUser {
		return volumeUser{id: env.ID, said: fmt.Sprintf("%s (%s)", env.Name, env.ID)}
	}
	known := make(map[string]*Environment, len(envs))
	for _, env := range envs {
		known[env.ID] = env
		for _, mount := range slices.Concat(env.Spec.Mounts, env.Effective().Mounts) {
			if env.Held && mount.Type == volume.Volume {
				add(mount.Source, named(env))
			}
		}
	}
	// After the store: what was deleted since is not staged any more.
	bound, err := m.cfg.NamedVolumes.Bound(ctx)
	if err != nil {
		return nil, err
	}
	for name, ids := range bound {
		for _, id := range ids {
			switch env := known[id]; {
			case env == nil || !env.Held:
				add(name, volumeUser{id: id, said: fmt.Sprintf("container %s, which the database does not know", id), unknown: true})
			case env.Alive(): // one that does not run drops with its next start what it does not name
				add(name, named(env))
			}
		}
	}
	return users, nil
}
