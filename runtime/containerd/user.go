package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// userKey is a user as an image knows it.
type userKey struct{ parent, name string }

// userCache bounds the number of users that are kept in memory.
const userCache = 1024

// accountsLimit bounds /etc/passwd and /etc/group: a tenant writes them.
const accountsLimit = 1 << 20

func (e *Engine) cachedUser(key userKey) (specs.User, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	u, found := e.users[key]
	return u, found
}

func (e *Engine) cacheUser(key userKey, u specs.User) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.users) >= userCache {
		clear(e.users)
	}
	e.users[key] = u
}

// findUser turns "name", "uid", "name:group" and "uid:gid" into numbers with
// the account files that open finds. A number needs no account.
func findUser(name string, open func(name string) ([]byte, error)) (specs.User, error) {
	passwd, err := open("etc/passwd")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return specs.User{}, err
	}
	group, err := open("etc/group")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return specs.User{}, err
	}
	if name == "" || (name == "root" && passwd == nil) {
		name = "0"
	}
	found, err := user.GetExecUser(name, nil, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return specs.User{}, problem.New(problem.UserNotFound, "the image has no user %q", name).WithField("spec.user").
			WithHint("name one of its /etc/passwd, or numbers as in 1000:1000").WithCause(err)
	}
	for _, id := range append([]int{found.Uid, found.Gid}, found.Sgids...) {
		if id < 0 || id > math.MaxInt32 { // the tenant writes these files
			return specs.User{}, problem.New(problem.UserNotFound, "the image's user %q has the number %d, which none can have", name, id).
				WithField("spec.user").WithHint("name another user of its /etc/passwd, or numbers as in 1000:1000")
		}
	}
	u := specs.User{UID: uint32(found.Uid), GID: uint32(found.Gid), AdditionalGids: []uint32{uint32(found.Gid)}}
	for _, gid := range found.Sgids {
		if !slices.Contains(u.AdditionalGids, uint32(gid)) {
			u.AdditionalGids = append(u.AdditionalGids, uint32(gid))
		}
	}
	return u, nil
}

// userOfProcess finds a user with the files that a running process sees.
func userOfProcess(ctx context.Context, pid int, name string) (specs.User, error) {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return specs.User{}, fmt.Errorf("open root of process %d: %w", pid, err)
	}
	defer unix.Close(root) //nolint:errcheck // nothing was written
	return findUser(name, func(file string) ([]byte, error) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		fd, err := unix.Openat2(root, file, &unix.OpenHow{
			Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", file, err)
		}
		return readAccounts(os.NewFile(uintptr(fd), file))
	})
}

// userOfSnapshot finds a user with the files of a snapshot that no process
// uses, without mounting it: a mount would outlive a daemon that dies here.
func userOfSnapshot(mounts []mount.Mount, name string) (specs.User, error) {
	dirs, err := layers(mounts)
	if err != nil {
		return specs.User{}, err
	}
	return findUser(name, func(file string) ([]byte, error) {
		found, err := resolve(dirs, file)
		if err != nil {
			return nil, err
		}
		f, err := os.OpenFile(found, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
		if err != nil {
			return nil, err
		}
		return readAccounts(f)
	})
}

func readAccounts(file *os.File) ([]byte, error) {
	defer file.Close() //nolint:errcheck // nothing was written
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("inspect %s: %w", file.Name(), err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: not a file: %w", file.Name(), fs.ErrNotExist)
	}
	data, err := io.ReadAll(io.LimitReader(file, accountsLimit))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file.Name(), err)
	}
	return data, nil
}

// layers are the directories that mounts stack, uppermost first.
func layers(mounts []mount.Mount) ([]string, error) {
	if len(mounts) != 1 {
		return nil, fmt.Errorf("read snapshot: %d mounts, want one", len(mounts))
	}
	m := mounts[0]
	if m.Type != "overlay" {
		return []string{m.Source}, nil
	}
	var dirs []string
	for _, option := range m.Options {
		if dir, found := strings.CutPrefix(option, "upperdir="); found {
			dirs = append([]string{dir}, dirs...)
		} else if list, found := strings.CutPrefix(option, "lowerdir="); found {
			dirs = append(dirs, strings.Split(list, ":")...)
		}
	}
	return dirs, nil
}

// resolve finds a file in stacked layers as overlayfs shows it: an upper layer
// hides what is below by a whiteout (a 0/0 device) or an opaque directory, and
// symlinks lead from the root. Every step is checked in its own layer, so no
// link is ever followed by the host.
func resolve(roots []string, file string) (string, error) {
	rest, at, depth := strings.Split(file, "/"), roots, 0
	var here []string // path of at
	for links := 0; links < 32; {
		name := rest[0]
		switch name {
		case "", ".":
			rest = rest[1:]
			if len(rest) == 0 {
				return "", fs.ErrNotExist
			}
			continue
		case "..":
			here = here[:max(0, len(here)-1)]
			rest, here, at = slices.Concat(here, rest[1:]), nil, roots
			if len(rest) == 0 {
				return "", fs.ErrNotExist
			}
			continue
		}
		next, found, info := descend(at, name)
		switch {
		case info == nil:
			return "", fmt.Errorf("find %s: %w", file, fs.ErrNotExist)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(found)
			if err != nil {
				return "", fmt.Errorf("find %s: %w", file, err)
			}
			links++
			if !path.IsAbs(target) {
				target = path.Join("/", path.Join(here...), target)
			}
			rest, here, at = append(strings.Split(path.Clean(target)[1:], "/"), rest[1:]...), nil, roots
		case len(rest) == 1:
			return found, nil
		default:
			rest, here, at = rest[1:], append(here, name), next
		}
		if depth++; depth > 256 {
			break
		}
	}
	return "", fmt.Errorf("find %s: too many links: %w", file, fs.ErrNotExist)
}

// descend looks name up in stacked directories: the topmost entry, and where
// it is a directory, all that it merges.
func descend(at []string, name string) (next []string, found string, info fs.FileInfo) {
	for _, dir := range at {
		candidate := filepath.Join(dir, name)
		var st unix.Stat_t
		if err := unix.Lstat(candidate, &st); err != nil {
			continue
		}
		if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
			break // whiteout
		}
		fi, err := os.Lstat(candidate)
		if err != nil {
			continue
		}
		if info == nil {
			info, found = fi, candidate
		}
		if !fi.IsDir() {
			break
		}
		next = append(next, candidate)
		var opaque [1]byte
		if n, err := unix.Lgetxattr(candidate, "trusted.overlay.opaque", opaque[:]); err == nil && n == 1 && opaque[0] == 'y' {
			break
		}
	}
	return next, found, info
}
