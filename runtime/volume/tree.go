package volume

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// tree is a copy of the mounts at a source, attached nowhere yet: closing it
// dissolves it. It keeps the very directory or file that was opened, whatever
// happens to the name.
type tree struct {
	fd        int // open_tree(2); -1 where the kernel has not got it
	source    int // the O_PATH descriptor
	directory bool
	readOnly  bool
}

// newTree copies the mounts at source, recursively, private, nosuid, nodev and
// on request read-only, submounts included. It takes source over.
func newTree(source int, readOnly bool) (*tree, error) {
	t := &tree{fd: -1, source: source, readOnly: readOnly}
	var stat unix.Stat_t
	if err := unix.Fstat(source, &stat); err != nil {
		t.close()
		return nil, fmt.Errorf("stat source: %w", err)
	}
	t.directory = stat.Mode&unix.S_IFMT == unix.S_IFDIR
	fd, err := unix.OpenTree(source, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if errors.Is(err, unix.ENOSYS) {
		return t, nil
	}
	if err != nil {
		t.close()
		return nil, fmt.Errorf("clone mount: %w", err)
	}
	t.fd = fd
	attr := &unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV,
		Propagation: unix.MS_PRIVATE,
	}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr)
	if errors.Is(err, unix.ENOSYS) {
		closeFD(t.fd)
		t.fd = -1
		return t, nil
	}
	if err != nil {
		t.close()
		return nil, fmt.Errorf("set mount attributes: %w", err)
	}
	return t, nil
}

// attach mounts the tree at dir/name.
func (t *tree) attach(dir int, name string) error {
	if t.fd < 0 {
		return t.attachOld(dir, name)
	}
	if err := unix.MoveMount(t.fd, "", dir, name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move mount: %w", err)
	}
	return nil
}

// attachOld does it with mount(2), before Linux 5.12. The bind is not
// recursive: a remount changes one mount only, and a read-only mount with
// writable submounts would be a lie.
func (t *tree) attachOld(dir int, name string) error {
	target := fdPath(dir) + "/" + name
	if err := unix.Mount(fdPath(t.source), target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind mount: %w", err)
	}
	flags := uintptr(unix.MS_BIND | unix.MS_REMOUNT | unix.MS_NOSUID | unix.MS_NODEV)
	if t.readOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount("", target, "", flags, ""); err != nil {
		return fmt.Errorf("set mount attributes: %w", err)
	}
	if err := unix.Mount("", target, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mount private: %w", err)
	}
	return nil
}

// close gives the descriptors back; a tree that was attached stays.
func (t *tree) close() {
	if t != nil {
		closeFD(t.fd)
		closeFD(t.source)
	}
}
