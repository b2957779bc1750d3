package rootfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// MaxPath is the length of the longest path in bytes, that of the kernel
// without its terminating zero.
const MaxPath = 4095

// Ways of resolving names.
const (
	inRoot  = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS
)

// Root is a directory that paths are resolved in. It is safe for concurrent
// use.
type Root struct {
	dir    *os.File          // O_PATH
	hidden map[string]string // what is not the caller's: names by place

	named bool // files are written under a name, as where there is no O_TMPFILE
}

// New returns the root at dir, a descriptor of a directory, which it takes
// over also when it fails. O_PATH is enough.
func New(dir *os.File) (*Root, error) {
	stat, err := status(dir)
	if err == nil && stat.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = unix.ENOTDIR
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open root %s: %w", dir.Name(), err), dir.Close())
	}
	return &Root{dir: dir, hidden: make(map[string]string)}, nil
}

// Open returns the root at a path of the host.
func Open(name string) (*Root, error) {
	dir, err := openAt(unix.AT_FDCWD, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open root %s: %w", name, err)
	}
	return New(dir)
}

// Close gives the descriptor back.
func (r *Root) Close() error { return r.dir.Close() }

// IsHosts says whether it is the root directory of this process itself.
func (r *Root) IsHosts() (bool, error) {
	own, err := os.Stat("/")
	if err != nil {
		return false, err
	}
	info, err := r.dir.Stat()
	if err != nil {
		return false, err
	}
	return os.SameFile(own, info), nil
}

// Hide keeps everybody out of directories, and from what is below them:
// mounts that are not there now and would cover what is written. Those that do
// not exist are left out. Call it before anything else.
func (r *Root) Hide(paths ...string) {
	for _, name := range paths {
		file, err := openAt(int(r.dir.Fd()), name, unix.O_PATH, inRoot)
		if err != nil {
			continue
		}
		if place, err := os.Readlink(selfPath(file)); err == nil {
			r.hidden[place] = name
		}
		_ = file.Close() // O_PATH: nothing can be lost
	}
}

// Type is what a file is.
type Type int

// The types.
const (
	Regular Type = iota + 1
	Directory
	Link
	FIFO
	Other // device or socket
)

// Info is a file as it is.
type Info struct {
	Name     string // last element of the path that was asked for; "." is the root
	Type     Type
	Size     int64  // bytes, of a regular file
	Mode     uint32 // permission, setuid, setgid and sticky bits
	UID, GID int
	ModTime  time.Time
	Target   string // of a link
}

// Stat tells about a file. follow says whether a link at the end of the path is
// followed; those on the way always are, within the root. FILE_NOT_FOUND,
// FILE_NOT_ALLOWED, FIELD_INVALID.
func (r *Root) Stat(name string, follow bool) (Info, error) {
	file, stat, err := r.find(name, follow)
	if err != nil {
		return Info{}, err
	}
	defer file.Close() //nolint:errcheck // O_PATH: nothing can be lost
	return infoOf(file, baseName(name), &stat)
}

func baseName(name string) string {
	if base := path.Base(path.Clean("/" + name)); base != "/" {
		return base
	}
	return "."
}

func infoOf(file *os.File, name string, stat *unix.Stat_t) (Info, error) {
	info := Info{
		Name: name, Type: typeOf(stat), Mode: stat.Mode & 0o7777, UID: int(stat.Uid), GID: int(stat.Gid),
		ModTime: time.Unix(stat.Mtim.Unix()),
	}
	switch info.Type {
	case Regular:
		info.Size = stat.Size
	case Link:
		target, err := readLink(file)
		if err != nil {
			return Info{}, fmt.Errorf("read link %s: %w", name, err)
		}
		info.Target = target
	case Directory, FIFO, Other:
	}
	return info, nil
}

func typeOf(stat *unix.Stat_t) Type {
	switch stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return Regular
	case unix.S_IFDIR:
		return Directory
	case unix.S_IFLNK:
		return Link
	case unix.S_IFIFO:
		return FIFO
	default:
		return Other
	}
}

// find opens what a path of the caller leads to, with O_PATH.
func (r *Root) find(name string, follow bool) (*os.File, unix.Stat_t, error) {
	if len(name) > MaxPath || strings.ContainsRune(name, 0) {
		return nil, unix.Stat_t{}, problem.New(problem.FieldInvalid, "the path is no path: it is longer than %d bytes, or has a zero in it", MaxPath).WithField("path")
	}
	flags := unix.O_PATH
	if !follow && !strings.HasSuffix(name, "/") {
		flags |= unix.O_NOFOLLOW
	}
	if name == "" {
		name = "/"
	}
	file, err := openAt(int(r.dir.Fd()), name, flags, inRoot)
	if err != nil {
		return nil, unix.Stat_t{}, explain(name, err)
	}
	stat, err := status(file)
	if err == nil {
		err = r.admit(file, name)
	}
	if err != nil {
		return nil, stat, errors.Join(err, file.Close())
	}
	return file, stat, nil
}

// enter opens a directory that a path of the caller leads to, for reading.
func (r *Root) enter(name string) (*os.File, error) {
	found, stat, err := r.find(name, true)
	if err != nil {
		return nil, err
	}
	defer found.Close() //nolint:errcheck // O_PATH: nothing can be lost
	if typeOf(&stat) != Directory {
		return nil, problem.New(problem.FileConflict, "%s is not a directory", name).WithField("path").
			WithHint("name a directory; what is copied is put into it")
	}
	dir, err := openAt(int(found.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY, beneath)
	if err != nil {
		return nil, explain(name, err)
	}
	return dir, nil
}

// admit refuses what lies in a file system of the kernel or is hidden.
func (r *Root) admit(file *os.File, name string) error {
	kernel, err := ofKernel(file)
	if err != nil {
		return fmt.Errorf("inspect file system of %s: %w", name, err)
	}
	if kernel {
		return problem.New(problem.FileNotAllowed, "%s lies in a file system of the kernel", name).WithField("path").
			WithHint("copy from and to places with plain files; a command inside can read the others")
	}
	if len(r.hidden) == 0 {
		return nil
	}
	cover, err := r.covered(file)
	if err != nil {
		return fmt.Errorf("find out where %s is: %w", name, err)
	}
	if cover != "" {
		return problem.New(problem.FileNotAllowed, "%s lies in %s, where something is mounted only while the environment runs", name, cover).WithField("path").
			WithHint("start the environment first; files of a volume are reached with remotegpu volume cp")
	}
	return nil
}

// covered is the hidden directory that a file is in, "" when it is in none.
// Where something is, the kernel tells of the descriptor, not its name.
func (r *Root) covered(file *os.File) (string, error) {
	place, err := os.Readlink(selfPath(file))
	if err != nil {
		return "", err
	}
	for hidden, name := range r.hidden {
		if place == hidden || strings.HasPrefix(place, hidden+"/") {
			return name, nil
		}
	}
	return "", nil
}

// ofKernel says whether a file lies in a file system that the kernel makes up:
// what is read there is of the host, and what is written changes it.
func ofKernel(file *os.File) (bool, error) {
	var stat unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(int(file.Fd()), &stat) }); err != nil {
		return false, err
	}
	switch stat.Type {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEBUGFS_MAGIC,
		unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, unix.NSFS_MAGIC, unix.PSTOREFS_MAGIC, unix.EFIVARFS_MAGIC,
		unix.SELINUX_MAGIC, unix.SMACK_MAGIC, unix.BINDERFS_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC, unix.RDTGROUP_SUPER_MAGIC:
		return true, nil
	}
	return false, nil
}

// openAt opens a name relative to a directory.
func openAt(dir int, name string, flags int, resolve uint64) (*os.File, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve}
	if flags&unix.O_CREAT != 0 || flags&unix.O_TMPFILE == unix.O_TMPFILE {
		how.Mode = 0o600
	}
	var fd int
	err := retry(func() (err error) { fd, err = unix.Openat2(dir, name, &how); return err })
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// reopen opens the very file of an O_PATH descriptor.
func reopen(file *os.File, flags int) (*os.File, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(selfPath(file), flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), file.Name()), nil
}

// selfPath is a name of an open file that leads to nothing else.
func selfPath(file *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", file.Fd()) }

// retry repeats what was interrupted, or raced with a rename (openat2(2)).
func retry(do func() error) error {
	err := error(unix.EAGAIN)
	for try := 0; try < 128 && (errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN)); try++ {
		err = do()
	}
	return err
}

func status(file *os.File) (unix.Stat_t, error) {
	var stat unix.Stat_t
	err := retry(func() error { return unix.Fstat(int(file.Fd()), &stat) })
	return stat, err
}

func readLink(file *os.File) (string, error) {
	target := make([]byte, MaxPath+1)
	n, err := unix.Readlinkat(int(file.Fd()), "", target)
	if err != nil {
		return "", err
	}
	return string(target[:n]), nil
}

// readSmall reads a plain file, or its first bytes. fs.ErrNotExist when there
// is none.
func (r *Root) readSmall(name string, limit int64) ([]byte, error) {
	found, stat, err := r.find(name, true)
	if problem.Of(err) != nil && problem.Of(err).Reason == problem.FileNotFound {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	defer found.Close() //nolint:errcheck // O_PATH: nothing can be lost
	if typeOf(&stat) != Regular {
		return nil, fs.ErrNotExist
	}
	file, err := reopen(found, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	defer file.Close() //nolint:errcheck // nothing was written
	return io.ReadAll(io.LimitReader(file, limit))
}
