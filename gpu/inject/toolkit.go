package inject

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/remotegpu/remotegpu/internal/keylock"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/trusted"
)

// The toolkit's versions that matter. What is older than the first lets a
// container out (CVE-2026-24260, all up to 1.19.0; CVE-2025-23266, up to
// 1.17.7); what is older than the second lacks what picks the GPU for EGL.
var (
	minToolkit  = Version{1, 19, 1, false}
	goodToolkit = Version{1, 20, 1, false}
)

const (
	// versionTimeout is how long a program may take to say its version.
	versionTimeout = 10 * time.Second
	// askAgain is after what time one is asked again that could not be run.
	askAgain = 5 * time.Second
)

// Version is a version of the toolkit.
type Version struct {
	Major, Minor, Patch int
	Pre                 bool // a release candidate of it
}

// String is the version as people write it.
func (v Version) String() string {
	text := fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch)
	if v.Pre {
		text += "-rc"
	}
	return text
}

// Before says whether v is older than other.
func (v Version) Before(other Version) bool {
	for _, pair := range [][2]int{{v.Major, other.Major}, {v.Minor, other.Minor}, {v.Patch, other.Patch}} {
		if pair[0] != pair[1] {
			return pair[0] < pair[1]
		}
	}
	return v.Pre && !other.Pre
}

var versionText = regexp.MustCompile(`(?m)\bversion:? v?(\d{1,6})\.(\d{1,6})\.(\d{1,6})([-~+.][0-9A-Za-z.~+-]*)?\s*$`)

// ParseVersion reads what a program of the toolkit answers to --version: the
// oldest of those that nvidia-container-cli says of itself and of its library
// (cli-version, lib-version). They are released with the toolkit, as its version.
func ParseVersion(output string) (Version, error) {
	var oldest *Version
	for _, match := range versionText.FindAllStringSubmatch(output, -1) {
		var v Version
		for i, number := range []*int{&v.Major, &v.Minor, &v.Patch} {
			*number, _ = strconv.Atoi(match[i+1]) // at most six digits
		}
		v.Pre = strings.Contains(match[4], "rc")
		if oldest == nil || v.Before(*oldest) {
			oldest = &v
		}
	}
	if oldest == nil {
		return Version{}, fmt.Errorf("no version in %.80q", output)
	}
	return *oldest, nil
}

// Toolkit is the NVIDIA Container Toolkit by one of its programs. It is safe for
// concurrent use.
type Toolkit struct {
	Path     string // of the program
	Name     string // as messages have it; "": the NVIDIA Container Toolkit
	AllowOld bool
	Log      *slog.Logger

	turns keylock.Map[string] // by the path of a program: who runs it
	mu    sync.Mutex
	said  map[string]said // by the path
}

// said is what a program answered when its file was in a state.
type said struct {
	of      string
	version Version
	err     error
	until   time.Time // zero: as long as the file is the same
}

// Check refuses a toolkit that is not there or lets containers out, unless that
// is allowed. GPU_TOOLKIT_MISSING, GPU_TOOLKIT_TOO_OLD.
func (t *Toolkit) Check(ctx context.Context) error {
	p := t.problem(ctx)
	if p == nil {
		return nil
	}
	unknown := p.Reason == problem.GPUToolkitOld || p.Reason == problem.Unavailable
	if _, err := os.Stat(t.Path); err == nil && unknown && t.AllowOld && ctx.Err() == nil {
		return nil
	}
	return p
}

func (t *Toolkit) name() string { return cmp.Or(t.Name, "the NVIDIA Container Toolkit") }

func (t *Toolkit) problem(ctx context.Context) *problem.Problem {
	info, err := os.Stat(t.Path)
	if t.Path == "" || errors.Is(err, fs.ErrNotExist) {
		if old := t.withoutHook(ctx); old != nil {
			return old
		}
		return problem.New(problem.GPUToolkitMissing, "%s is not installed: there is no %s", t.name(), t.Path).
			WithHint("install it (nvidia-container-toolkit, %s or newer), or set its place in the section gpu of the configuration", goodToolkit)
	} else if err != nil {
		return problem.New(problem.GPUToolkitMissing, "%s cannot be used: %v", t.name(), err).WithCause(err).
			WithHint("see what is at %s", t.Path)
	}
	if err := checkProgram(t.Path); err != nil {
		return err
	}
	version, err := t.ask(ctx, t.Path, info)
	switch {
	case errors.Is(err, errNoAnswer):
		return problem.New(problem.Unavailable, "%s did not say its version", t.name()).WithCause(err).
			WithHint("try again in a moment; see whether %s --version works on the host", t.Path)
	case err != nil:
		return problem.New(problem.GPUToolkitOld, "%s does not say its version: %v", t.name(), err).WithCause(err).
			WithHint("install %s or newer; gpu.allow_old_toolkit accepts any, though old ones let containers out", minToolkit)
	case version.Before(minToolkit):
		return problem.New(problem.GPUToolkitOld, "%s is %s; before %s it lets containers out (CVE-2026-24260)", t.name(), version, minToolkit).
			WithHint("install %s or newer; gpu.allow_old_toolkit accepts it all the same", goodToolkit)
	}
	return nil
}

// withoutHook tells of a toolkit that has no program of the name because it is
// from before that; nil when there is none at all.
func (t *Toolkit) withoutHook(ctx context.Context) *problem.Problem {
	other := filepath.Join(filepath.Dir(t.Path), "nvidia-ctk")
	var version Version
	info, err := os.Stat(other)
	if err == nil {
		err = trusted.Program(other)
	}
	if err == nil {
		version, err = t.ask(ctx, other, info)
	}
	if known := t.Path != "" && err == nil; !known || !version.Before(minToolkit) {
		return nil
	}
	return problem.New(problem.GPUToolkitOld, "the NVIDIA Container Toolkit is %s: it has no %s", version, t.Path).
		WithHint("install %s or newer", goodToolkit)
}

// ask returns the version that a program says, as it said when its file was last
// another. One that could not be run, which says nothing of it, is asked again
// after a moment: errNoAnswer.
func (t *Toolkit) ask(ctx context.Context, program string, info fs.FileInfo) (Version, error) {
	unlock, err := t.turns.Lock(ctx, program)
	if err != nil {
		return Version{}, errors.Join(errNoAnswer, err)
	}
	defer unlock()
	of := ""
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		of = fmt.Sprint(stat.Dev, stat.Ino, stat.Size, stat.Mtim, stat.Ctim)
	}
	t.mu.Lock()
	last, known := t.said[program]
	t.mu.Unlock()
	if known && of != "" && last.of == of && (last.until.IsZero() || time.Now().Before(last.until)) {
		return last.version, last.err
	}
	version, err := runVersion(ctx, program)
	if err != nil && ctx.Err() != nil {
		return Version{}, err // who asked has gone
	}
	answer := said{of: of, version: version, err: err}
	if errors.Is(err, errNoAnswer) {
		answer.until = time.Now().Add(askAgain)
	}
	t.mu.Lock()
	if t.said == nil {
		t.said = map[string]said{}
	}
	t.said[program] = answer
	t.mu.Unlock()
	switch log := t.Log.With("program", program); {
	case err != nil:
		log.WarnContext(ctx, "the version of the NVIDIA Container Toolkit is not known", "allowed", t.AllowOld, "error", err)
	case version.Before(minToolkit):
		log.WarnContext(ctx, "the NVIDIA Container Toolkit lets containers out: it is too old", "version", version, "allowed", t.AllowOld)
	case version.Before(goodToolkit):
		log.WarnContext(ctx, "a newer NVIDIA Container Toolkit is wanted: this one does not tell EGL which GPU to use", "version", version)
	}
	return version, err
}

// errNoAnswer is a program that could not be run, or not to its end.
var errNoAnswer = errors.New("it did not answer")

// runVersion asks a program, with nothing of ours in its environment.
func runVersion(ctx context.Context, program string) (Version, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, program, "--version")
	cmd.Env = hookEnv()
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = &limited{to: &out}, &limited{to: &said}
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		if exit, is := errors.AsType[*exec.ExitError](err); !is || !exit.Exited() {
			err = fmt.Errorf("%w: %w", errNoAnswer, err)
		}
		return Version{}, fmt.Errorf("%s --version: %w: %s", program, err, strings.TrimSpace(said.String()))
	}
	return ParseVersion(out.String())
}

// limited keeps the beginning of what is written.
type limited struct{ to *bytes.Buffer }

const outputLimit = 4096 // bytes

func (l *limited) Write(p []byte) (int, error) {
	l.to.Write(p[:min(len(p), outputLimit-min(outputLimit, l.to.Len()))])
	return len(p), nil
}

// hookEnv is the environment of programs that run as root on the host for a
// container. It is never empty: then they would get another's.
func hookEnv() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "NVIDIA_CTK_DEBUG=false"}
}
