package runtime

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/imageref"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/dns"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

// Limits and defaults of a spec.
const (
	DefaultProject    = "default"
	MinMemory         = 16 << 20  // bytes; less cannot start runc's init reliably
	DefaultPids       = 4096      // processes and threads
	DefaultShm        = 64 << 20  // bytes of /dev/shm, as other runtimes
	DefaultDesktopShm = 512 << 20 // browsers crash with less
	DefaultWidth      = 1920      // pixels
	DefaultHeight     = 1080      // pixels
	DefaultDepth      = 24        // bits
	// LabelMinMemory is the label of an image that says how much memory in
	// bytes an environment made from it needs.
	LabelMinMemory = "io.remotegpu.min-memory"
	// LabelDesktop is the label of an image that brings a desktop: "vnc".
	LabelDesktop = "io.remotegpu.desktop"
	// LabelUser is the label of an image that says which user people are who
	// come by SSH: "gpu".
	LabelUser = "io.remotegpu.user"

	passwordVariable = "VNC_PASSWORD"
	maxPassword      = 8 // bytes; VNC authentication is DES with the password as its key (RFC 6143 section 7.2.2)

	resolveTimeout = 15 * time.Second
)

var (
	dnsLabel     = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	hostname     = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?$`)
	loginName    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,31}$`) // useradd(8); no option of ssh begins like that
	variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// checkName refuses what is no DNS label (RFC 1123 section 2.1), and labels
// that zones need for themselves: names become host names and DNS names.
func checkName(name, field string) error {
	if slices.Contains(dns.Reserved(), name) {
		return problem.New(problem.EnvNameInvalid, "the name %q is reserved for the DNS zones", name).WithField(field).
			WithHint("choose another name")
	}
	if name == "localhost" {
		return problem.New(problem.EnvNameInvalid, "the name %q means the environment itself, inside of each", name).WithField(field).
			WithHint("choose another name")
	}
	if dnsLabel.MatchString(name) {
		return likeAnID(problem.EnvNameInvalid, name, field)
	}
	return problem.New(problem.EnvNameInvalid, "%q is not a valid name", name).WithField(field).
		WithHint("use 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit, for example %q", "desk-1")
}

// complete fills in defaults and checks everything that can be checked without
// touching anything. It reports all faults at once, each with its field.
func (m *Manager) complete(name string, spec *Spec) error {
	errs := []error{checkName(name, "name")}
	if ref, err := imageref.Normalize(spec.Image); err != nil {
		errs = append(errs, err)
	} else {
		spec.Image = ref
	}
	spec.PullPolicy = cmp.Or(spec.PullPolicy, PullIfNotPresent)
	if spec.OwnHostname = spec.Hostname != ""; !spec.OwnHostname {
		spec.Hostname = name
	} else if !hostname.MatchString(spec.Hostname) {
		errs = append(errs, invalid("spec.hostname", "use letters, digits, - and ., at most 63 (RFC 1123)",
			"%q is not a host name", spec.Hostname))
	}
	if spec.Workdir != "" && (!path.IsAbs(spec.Workdir) || strings.ContainsRune(spec.Workdir, 0)) {
		errs = append(errs, invalid("spec.workdir", "begin it with /", "working directory %q is not absolute", spec.Workdir))
	}
	if strings.Count(spec.User, ":") > 1 {
		errs = append(errs, invalid("spec.user", "write USER or USER:GROUP, by names or numbers", "%q is no user", spec.User))
	}
	if spec.Desktop != nil {
		copied := *spec.Desktop // the caller may use the request again
		d := &copied
		spec.Desktop = d
		d.Width, d.Height = cmp.Or(d.Width, DefaultWidth), cmp.Or(d.Height, DefaultHeight)
		d.Depth = cmp.Or(d.Depth, DefaultDepth)
		if d.Width < 320 || d.Height < 200 {
			errs = append(errs, invalid("spec.desktop", "use at least 320x200", "a desktop of %dx%d pixels is too small", d.Width, d.Height))
		}
	}
	if password := spec.Env[passwordVariable]; spec.Desktop != nil && len(password) > maxPassword {
		errs = append(errs, invalid("spec.env["+strconv.Quote(passwordVariable)+"]", "use 8 bytes, or leave it out: the browser needs none",
			"VNC authentication looks at %d bytes of a password only", maxPassword))
	}
	errs = append(errs, checkVariables(spec.Env), checkResources(spec), checkRestart(spec), checkHealth(spec), m.checkNetwork(spec), checkGPU(spec),
		m.cfg.Ports.Check(spec.Ports, "spec.ports"), m.cfg.Volumes.Check(spec.Mounts, "spec.mounts"),
		checkTargets(spec.Mounts, spec.GPU != nil))
	return errors.Join(errs...)
}

// invalid is a fault of one field.
func invalid(field, hint, format string, args ...any) error {
	return problem.New(problem.FieldInvalid, format, args...).WithField(field).WithHint("%s", hint)
}

func checkVariables(env map[string]string) error {
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(env)) {
		field := "spec.env[" + strconv.Quote(key) + "]"
		switch {
		case !variableName.MatchString(key):
			errs = append(errs, invalid(field, "use letters, digits and _, not beginning with a digit", "%q is not a variable name", key))
		case strings.HasPrefix(key, "REMOTEGPU_"):
			errs = append(errs, problem.New(problem.EnvVariableReserved, "variable %s is reserved", key).
				WithField(field).WithHint("variables that begin with REMOTEGPU_ are set by the node"))
		case gpu.Reserved(key):
			errs = append(errs, problem.New(problem.EnvVariableReserved, "variable %s is reserved: it steers which GPUs a container gets", key).
				WithField(field).WithHint("leave it out; ask for GPUs with spec.gpu, and choose among those that were given with CUDA_VISIBLE_DEVICES"))
		case strings.ContainsRune(env[key], 0):
			errs = append(errs, invalid(field, "variables cannot carry binary data; use a mount", "the value of %s contains a NUL byte", key))
		}
	}
	return errors.Join(errs...)
}

// checkTargets refuses mounts that would steer the hooks that bring GPUs into a
// container, or be in the way of what comes with them.
func checkTargets(mounts []volume.Mount, gpus bool) error {
	var errs []error
	for i, mount := range mounts {
		place, is := gpu.ReservedTarget(mount.Target, gpus)
		if !is {
			continue
		}
		hint := "mount somewhere else"
		if gpus {
			hint = "mount somewhere else: files of the GPU's driver belong there"
		}
		errs = append(errs, invalid(fmt.Sprintf("spec.mounts[%d].target", i), hint, "target %s is in the way of %s, which belongs to the node", mount.Target, place))
	}
	return errors.Join(errs...)
}

func checkResources(spec *Spec) error {
	var errs []error
	r := &spec.Resources
	r.Pids = cmp.Or(r.Pids, DefaultPids)
	if r.ShmBytes == 0 {
		r.ShmBytes = DefaultShm
		if spec.Desktop != nil {
			r.ShmBytes = DefaultDesktopShm
		}
	}
	if r.MemoryBytes != 0 && r.MemoryBytes < MinMemory {
		errs = append(errs, problem.New(problem.MemoryTooSmall, "%d bytes of memory are too few", r.MemoryBytes).
			WithField("spec.resources.memory_bytes").WithHint("give at least %d bytes (16 MiB)", MinMemory))
	}
	if r.SwapBytes != 0 && r.MemoryBytes == 0 {
		errs = append(errs, invalid("spec.resources.swap_bytes", "set memory_bytes too; without it swap is not limited",
			"swap is limited but memory is not"))
	}
	if r.DiskBytes != 0 && r.DiskBytes < MinDisk {
		errs = append(errs, invalid(fieldDisk, "give at least 1 MiB, or leave the limit out", "%d bytes of writable layer are too few", r.DiskBytes))
	}
	if r.DiskBestEffort && r.DiskBytes == 0 {
		errs = append(errs, invalid("spec.resources.disk_best_effort", "set disk_bytes too", "there is no limit of the writable layer to do one's best about"))
	}
	if r.CPUMillis != 0 && r.CPUMillis < 10 {
		errs = append(errs, invalid("spec.resources.cpu_millis", "give at least 10; the kernel's smallest quota is 1 ms per period",
			"%d thousandths of a CPU are too few", r.CPUMillis))
	}
	seen := map[string]bool{}
	for i, limit := range r.Ulimits {
		field := fmt.Sprintf("spec.resources.ulimits[%d]", i)
		if seen[limit.Name] {
			errs = append(errs, invalid(field+".name", "give it once", "limit %q is given twice", limit.Name))
		}
		seen[limit.Name] = true
		if limit.Hard != -1 && (limit.Soft == -1 || limit.Soft > limit.Hard) {
			errs = append(errs, invalid(field+".soft", "raise the hard limit or lower the soft one (setrlimit(2))",
				"the soft limit of %q is above its hard limit", limit.Name))
		}
	}
	return errors.Join(errs...)
}

// checkImage finds the image or asks its registry, so that an unknown one is
// refused before anything is taken. It returns what the caller should know.
func (m *Manager) checkImage(ctx context.Context, spec *Spec, snapshot *Snapshot) (warnings []string, err error) {
	if snapshot != nil {
		return checkImageLabels(spec, Image{Name: snapshot.Layer.Image, Labels: snapshot.Layer.ImageLabels})
	}
	if spec.PullPolicy != PullAlways {
		image, err := m.cfg.Images.Image(ctx, spec.Image)
		if err == nil {
			return checkImageLabels(spec, image)
		}
		if !errdefs.IsNotFound(err) {
			return nil, err
		}
		if spec.PullPolicy == PullNever {
			return nil, problem.New(problem.ImageNotFound, "image %s is not on this node", spec.Image).WithField("spec.image").
				WithHint("pull or build it first (remotegpu image pull, remotegpu image build), or use another pull policy").WithCause(err)
		}
	}
	resolving, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	if err := m.cfg.Images.Resolve(resolving, spec.Image); err != nil {
		p := *problem.Of(err)
		p.Field = "spec.image"
		switch p.Reason { //nolint:exhaustive // the others say enough
		case problem.ImageNotFound:
			p.Hint = "check the reference; neither this node nor its registry has it"
		case problem.RegistryUnavailable:
			p.Hint = "the image is not on this node: " + p.Hint + "; or build or import the image"
		}
		return nil, &p
	}
	return nil, nil
}

// loginOf is the user that people are by SSH in what is made from an image of
// these labels, "" when they do not say.
func loginOf(labels map[string]string) string {
	if name := labels[LabelUser]; loginName.MatchString(name) {
		return name
	}
	return ""
}

// checkImageLabels holds the spec against what the image says of itself.
func checkImageLabels(spec *Spec, image Image) (warnings []string, err error) {
	if text := image.Labels[LabelMinMemory]; text != "" {
		least, err := strconv.ParseInt(text, 10, 64)
		if err != nil || least < 0 {
			warnings = append(warnings, fmt.Sprintf("label %s of image %s is no number of bytes and is ignored", LabelMinMemory, image.Name))
		} else if limit := spec.Resources.MemoryBytes; limit != 0 && limit < least {
			return nil, problem.New(problem.MemoryTooSmall, "image %s needs %d bytes of memory, %d are given", image.Name, least, limit).
				WithField("spec.resources.memory_bytes").WithHint("give at least %d MiB, or leave the limit out", (least+1<<20-1)>>20)
		}
	}
	if name := image.Labels[LabelUser]; name != "" && loginOf(image.Labels) == "" {
		warnings = append(warnings, fmt.Sprintf("label %s of image %s is no name of a user and is ignored", LabelUser, image.Name))
	}
	if spec.Desktop != nil && image.Labels[LabelDesktop] == "" {
		warnings = append(warnings, fmt.Sprintf("image %s does not say that it brings a desktop (label %s)", image.Name, LabelDesktop))
	}
	return warnings, nil
}
