package rootfs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// explain makes what the kernel said of a path of the caller a problem.
func explain(name string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return problem.New(problem.FileNotFound, "%s does not exist", name).WithField("path").WithCause(err).
			WithHint("check the path; links lead from the root of the environment or volume")
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
		return problem.New(problem.FileNotAllowed, "%s goes through links that may not be followed", name).WithField("path").WithCause(err).
			WithHint("name the file itself: links in circles and those of /proc are not followed")
	case errors.Is(err, unix.ENAMETOOLONG):
		return problem.New(problem.FieldInvalid, "%.64s… is too long for a path", name).WithField("path").WithCause(err)
	case errors.Is(err, unix.EAGAIN):
		return problem.New(problem.Unavailable, "%s keeps changing while it is opened", name).WithField("path").WithCause(err).
			WithHint("try again when nothing renames directories there")
	}
	return explainWrite(name, err)
}

// explainWrite makes what the kernel said of an entry of an archive a problem,
// where the caller can do something about it.
func explainWrite(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return problem.New(problem.NoSpace, "there is no space left for %s", name).WithCause(err).
			WithHint("make space, or raise the quota; what was copied before this is there, this file is as it was")
	case errors.Is(err, unix.EFBIG):
		return problem.New(problem.NoSpace, "%s is larger than its file system allows", name).WithCause(err).
			WithHint("split it; what was copied before this is there, this file is as it was")
	case errors.Is(err, unix.EROFS):
		return notAllowed(name, "is on a read-only mount", err).WithHint("copy to another place, or mount it read-write")
	case errors.Is(err, unix.EBUSY):
		return notAllowed(name, "is a mount of its own and cannot be replaced", err).
			WithHint("copy what is mounted there on the host, or change it with a command inside")
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return notAllowed(name, "may not be changed", err).WithHint("its file system, or an attribute such as immutable, forbids it")
	case errors.Is(err, unix.EXDEV):
		return notAllowed(name, "is a hard link to another file system", err).WithHint("leave hard links out (tar --hard-dereference)")
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENOTEMPTY):
		return conflict(name, "is a directory there, and no directory in the archive").WithCause(err)
	case errors.Is(err, unix.ENOTDIR):
		return conflict(name, "is a directory in the archive, and none there").WithCause(err)
	case errors.Is(err, unix.ELOOP):
		return conflict(name, "goes through a link there").WithCause(err)
	case errors.Is(err, unix.EEXIST):
		return problem.New(problem.FileExists, "%s exists", name).WithCause(err).WithHint("allow overwriting, or choose another place")
	case errors.Is(err, unix.ENAMETOOLONG):
		return invalid("the name %.64s… is too long", name).WithCause(err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESTALE):
		return problem.New(problem.FileConflict, "%s cannot be put there: its directory was removed meanwhile", name).WithCause(err).
			WithHint("copy again when nothing else changes the directory")
	}
	return fmt.Errorf("copy %s: %w", name, err)
}

func conflict(name, text string) *problem.Problem {
	return problem.New(problem.FileConflict, "%s %s", name, text).
		WithHint("remove it there first, or choose another place")
}

func notAllowed(name, text string, err error) *problem.Problem {
	return problem.New(problem.FileNotAllowed, "%s %s", name, text).WithCause(err)
}

func invalid(format string, args ...any) *problem.Problem {
	return problem.New(problem.ArchiveInvalid, format, args...).
		WithHint("send an uncompressed tar stream of directories, plain files, links and FIFOs")
}
