package containerd

import (
	"fmt"
	"path"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"

	"github.com/remotegpu/remotegpu/internal/rootfs"
)

// loaderDir is where the toolkit's hook update-ldcache tells the loader of a
// container where libraries are: in a new file at each start, which it leaves.
const loaderDir = "/etc/ld.so.conf.d"

// leftByHook says whether a file there is one of the hook's (toolkit,
// internal/ldconfig).
func leftByHook(name string) bool {
	for _, pattern := range []string{"00-nvcr-*.conf", "zz-nvcr-*.conf"} {
		if is, err := path.Match(pattern, name); err == nil && is {
			return true
		}
	}
	return false
}

// clearLoader removes what the hook has left in a layer at earlier starts. The
// tenant writes there, so nothing is followed; the layer is mounted only if
// there is something to remove.
func clearLoader(mounts []mount.Mount) error {
	if len(mounts) == 1 && !slices.Contains([]string{"overlay", "bind"}, mounts[0].Type) {
		return unload(mounts) // its files are in a device
	}
	dirs, err := layers(mounts)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		found, err := inLayer(dir)
		if err != nil {
			return fmt.Errorf("look for what hooks have left: %w", err)
		}
		if found {
			return unload(mounts)
		}
	}
	return nil
}

func inLayer(dir string) (bool, error) {
	root, err := rootfs.Open(dir)
	if err != nil {
		return false, err
	}
	defer root.Close() //nolint:errcheck // nothing was written
	return root.HasNames(loaderDir, leftByHook)
}

func unload(mounts []mount.Mount) error {
	dir, err := mountDetached(mounts)
	if err != nil {
		return err
	}
	root, err := rootfs.New(dir)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // removing was checked
	if err := root.RemoveNames(loaderDir, leftByHook); err != nil {
		return fmt.Errorf("remove what hooks have left: %w", err)
	}
	return nil
}
