// Package projectquota limits the size of directories with the project quotas
// of ext4 and XFS: every file below a directory belongs to a project, and the
// filesystem refuses what would make the project's files larger than its
// limit. Which project a directory has, and which limits there are, the
// filesystem keeps; nothing else has to be persisted.
package projectquota

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Block is the unit of limits, bytes.
const Block = 512

// Unsupported says why the filesystem of a directory cannot limit it.
type Unsupported struct {
	Filesystem string // its type, such as "ext4"; "" when not known
	Reason     string // a sentence for people
	Hint       string // what makes it possible
}

// Error is the reason.
func (u *Unsupported) Error() string { return u.Reason }

// Quota is what a project uses, and may use.
type Quota struct {
	ID    uint32
	Used  int64 // bytes
	Limit int64 // bytes; 0: none
	Files int64 // of any kind, directories included
}

// Pool gives projects of a range of ids to directories of one filesystem. It
// is safe for concurrent use.
type Pool struct {
	First, Last uint32 // ids, both included

	mu        sync.Mutex
	assigning map[uint32]bool // projects that are being given: they may have no files yet
}

// Probe tells the type of the filesystem of a directory that can be limited;
// *Unsupported when it cannot. It changes nothing.
func Probe(dir string) (filesystem string, err error) {
	file, err := open(dir)
	if err != nil {
		return "", err
	}
	defer file.Close() //nolint:errcheck // it is only looked at
	m, err := mountOf(dir)
	if err != nil {
		return "", err
	}
	where := fmt.Sprintf("filesystem %s of %s", m.kind, dir)
	if m.point != dir {
		where += " (mounted on " + m.point + ")"
	}
	hints := map[string]string{
		"ext4": "enable the features quota and project with tune2fs -O quota,project while it is not mounted, and mount it with prjquota",
		"xfs":  "mount it with prjquota; for the root filesystem boot with rootflags=prjquota",
	}
	hint, known := hints[m.kind]
	if !known {
		return m.kind, &Unsupported{m.kind, where + " has no project quotas", "put it on XFS, or on ext4 with the features quota and project, mounted with prjquota"}
	}
	if _, err := getAttributes(file); errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		return m.kind, &Unsupported{m.kind, where + " has no projects", hint}
	} else if err != nil {
		return m.kind, err
	}
	state, err := getState(file)
	switch {
	case errors.Is(err, unix.ENOSYS) && !hasCall():
		return m.kind, &Unsupported{m.kind, "the kernel lacks quotactl_fd(2)", "use Linux 5.14 or newer, built with CONFIG_QUOTACTL"}
	case errors.Is(err, unix.EPERM):
		return m.kind, fmt.Errorf("ask for quotas of %s: %w", dir, err)
	case err != nil, state.flags&accounting == 0:
		return m.kind, &Unsupported{m.kind, where + " is mounted without prjquota", hint}
	case state.flags&enforcement == 0:
		return m.kind, &Unsupported{m.kind, where + " counts projects and does not limit them (pqnoenforce)", hint}
	}
	return m.kind, nil
}

// hasCall says whether the kernel has the system call at all: a bad descriptor
// is noticed first.
func hasCall() bool {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, ^uintptr(0), 0, 0, 0, 0, 0)
	return errno != unix.ENOSYS
}

// Of is the quota of the project that a directory belongs to. The zero Quota
// when that is none of the pool's.
func (p *Pool) Of(dir string) (Quota, error) {
	file, err := open(dir)
	if err != nil {
		return Quota{}, err
	}
	defer file.Close() //nolint:errcheck // it is only read
	attributes, err := getAttributes(file)
	if err != nil {
		return Quota{}, fmt.Errorf("read project of %s: %w", dir, err)
	}
	if !p.Has(attributes.project) {
		return Quota{}, nil
	}
	return getQuota(file, attributes.project)
}

// Limit lets the files below some directories of one filesystem grow to that
// many bytes together, rounded up to whole blocks; 0 lifts the limit. It gives
// the directories a project if they have none; when they have files already,
// nobody may write them meanwhile. That ends with ctx: nothing is limited then,
// and some files have a project that the next call replaces.
func (p *Pool) Limit(ctx context.Context, bytes int64, dirs ...string) error {
	file, err := open(dirs[0])
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // it is only looked at
	attributes, err := getAttributes(file)
	if err != nil {
		return fmt.Errorf("read project of %s: %w", dirs[0], err)
	}
	id := attributes.project
	if !p.Has(id) {
		if bytes == 0 {
			return nil
		}
		if id, err = p.take(file); err != nil {
			return err
		}
		defer p.settle(id)
		// A directory comes after what is below it, and the first one after the
		// others, so that one which has the project has it all. The limit comes
		// last: that of a project without files belongs to nobody (Stale).
		for _, dir := range slices.Backward(dirs) {
			if err := assign(ctx, dir, id); err != nil {
				return err
			}
		}
	}
	if err := setLimit(file, id, uint64(bytes+Block-1)/Block); err != nil {
		return fmt.Errorf("limit %s to %d bytes: %w", dirs[0], bytes, err)
	}
	return nil
}

// take finds a free project, which is nobody else's until settle. The walk over
// a tenant's files in between may take long, and holds nobody up.
func (p *Pool) take(file *os.File) (uint32, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, err := p.free(file)
	if err != nil {
		return 0, err
	}
	if p.assigning == nil {
		p.assigning = make(map[uint32]bool)
	}
	p.assigning[id] = true
	return id, nil
}

func (p *Pool) settle(id uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.assigning, id)
}

// Has says whether a project is of the pool.
func (p *Pool) Has(id uint32) bool { return id >= p.First && id <= p.Last }

// free finds a project that has neither files nor a limit, and is not being
// given. Call it with the lock held.
func (p *Pool) free(file *os.File) (uint32, error) {
	for id := p.First; ; id++ {
		if !p.assigning[id] {
			next, err := nextQuota(file, id)
			if errors.Is(err, unix.ENOENT) || err == nil && next.ID > id {
				return id, nil // a gap
			}
			if err != nil {
				return 0, fmt.Errorf("look for a free project: %w", err)
			}
			if next.ID < id || next.Files == 0 && next.Limit == 0 {
				return id, nil // wrapped around, or left by a project that is gone
			}
		}
		if id == p.Last {
			return 0, fmt.Errorf("all projects from %d to %d are in use: %w", p.First, p.Last, unix.ENOSPC)
		}
	}
}

// Stale are the projects of the pool that have a limit and no files: what they
// limited is gone.
func (p *Pool) Stale(dir string) ([]uint32, error) {
	file, err := open(dir)
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // it is only read
	var stale []uint32
	for id := p.First; id <= p.Last; id++ {
		quota, err := nextQuota(file, id)
		if errors.Is(err, unix.ENOENT) || err == nil && (quota.ID < id || quota.ID > p.Last) {
			break
		}
		if err != nil {
			return stale, fmt.Errorf("list projects: %w", err)
		}
		if quota.Files == 0 && quota.Limit != 0 {
			stale = append(stale, quota.ID)
		}
		id = quota.ID
	}
	return stale, nil
}

// Lift lifts the limit of a project on the filesystem of a directory.
func (p *Pool) Lift(dir string, id uint32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	file, err := open(dir)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // it is only looked at
	if err := setLimit(file, id, 0); err != nil {
		return fmt.Errorf("release project %d: %w", id, err)
	}
	return nil
}

// Release does as Lift, if the project has no files. The filesystem may count
// removed files for a while.
func (p *Pool) Release(dir string, id uint32) error {
	stale, err := p.Stale(dir)
	if err != nil || !slices.Contains(stale, id) {
		return err
	}
	return p.Lift(dir, id)
}

// open opens a directory that is no symbolic link.
func open(dir string) (*os.File, error) {
	return os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}
