package volume

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// Check refuses what is not allowed: every mount at fault, with the field
// (field[i].source …) named. It opens host paths to look at them and changes
// nothing.
func (m *Manager) Check(mounts []Mount, field string) error {
	var problems []error
	refuse := func(p *problem.Problem, i int, name string) {
		problems = append(problems, p.WithField(fmt.Sprintf("%s[%d].%s", field, i, name)))
	}
	first := make(map[string]int, len(mounts))
	for i, mount := range mounts {
		if p := checkTarget(mount.Target); p != nil {
			refuse(p, i, "target")
		} else if other, taken := first[mount.Target]; taken {
			refuse(problem.New(problem.FieldInvalid, "mounts %d and %d have the same target %s", other, i, mount.Target).
				WithHint("give each mount a target of its own"), i, "target")
		} else {
			first[mount.Target] = i
		}
		if p := checkSize(mount); p != nil {
			refuse(p, i, "size_bytes")
		}
		switch mount.Type {
		case Bind:
			if p := m.checkBind(mount.Source); p != nil {
				refuse(p, i, "source")
			}
		case Volume:
			if p := checkVolumeName(mount.Source); p != nil {
				refuse(p, i, "source")
			}
		case Tmpfs:
			if mount.Source != "" {
				refuse(problem.New(problem.FieldInvalid, "a tmpfs has no source").WithHint("leave source empty"), i, "source")
			}
		default:
			refuse(problem.New(problem.FieldInvalid, "unknown mount type %q", mount.Type).
				WithHint("use %s, %s or %s", Bind, Volume, Tmpfs), i, "type")
		}
	}
	return errors.Join(problems...)
}

func (m *Manager) checkBind(source string) *problem.Problem {
	fd, err := m.openBind(source)
	if err != nil {
		return problem.Of(err)
	}
	closeFD(fd)
	return nil
}

func checkTarget(target string) *problem.Problem {
	invalid := func(format string, args ...any) *problem.Problem {
		return problem.New(problem.FieldInvalid, format, args...)
	}
	switch {
	case !filepath.IsAbs(target):
		return invalid("target %q is not absolute", target).WithHint("start it with a slash")
	case strings.ContainsAny(target, "\x00\n"):
		return invalid("target %q has a character that a path may not have", target)
	case filepath.Clean(target) != target:
		return invalid("target %q is not clean", target).WithHint("write %s", filepath.Clean(target))
	case target == "/":
		return invalid("the root directory cannot be a target").WithHint("mount to a directory below it")
	}
	for _, reserved := range []string{"/proc", "/sys", "/dev"} {
		if within(target, reserved) {
			p := invalid("target %s lies in %s, which belongs to the system", target, reserved)
			if target == "/dev/shm" {
				return p.WithHint("set resources.shm_bytes for the size of /dev/shm")
			}
			return p.WithHint("mount somewhere else")
		}
	}
	return nil
}

func checkSize(mount Mount) *problem.Problem {
	switch {
	case mount.SizeBytes < 0:
		return problem.New(problem.FieldInvalid, "size %d is negative", mount.SizeBytes).
			WithHint("leave it out for 64 MiB")
	case mount.SizeBytes > 0 && mount.Type != Tmpfs:
		return problem.New(problem.FieldInvalid, "only a tmpfs has a size").WithHint("leave size_bytes out")
	}
	return nil
}

var volumeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func checkVolumeName(name string) *problem.Problem {
	if volumeName.MatchString(name) {
		return nil
	}
	return problem.New(problem.FieldInvalid, "volume name %q is not a DNS label", name).
		WithHint("use at most 63 of a-z, 0-9 and -, with a letter or digit at both ends; a host path starts with a slash")
}

// within says whether path is dir or below it. Both are clean.
func within(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}
