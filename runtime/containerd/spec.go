package containerd

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/volume"
)

// specVersion is the runtime-spec that rendered specs follow: nothing newer is
// used, and older runtimes (crun of Debian 12) refuse a newer number.
const specVersion = "1.0.2"

// defaultFiles is RLIMIT_NOFILE unless a container sets its own: containerd's
// 1024 is too little for a browser.
const defaultFiles = 1 << 20

const (
	cpuPeriod    = 100_000 // microseconds, the kernel's default
	minCPUQuota  = 1_000   // microseconds, the kernel's minimum
	minShares    = 2       // of a CPU's 1024, the kernel's bounds (cgroup v1)
	maxShares    = 1 << 18 // those of 256 CPUs: who has more shares alike
	defaultShm   = 64 << 20
	defaultTmpfs = 64 << 20
)

// render writes the OCI spec of a container: containerd's default namespaces,
// capabilities, seccomp profile (narrowed), masked and read-only paths, with what the
// container and its image say on top, and what its GPUs take over all of that.
func (e *Engine) render(ctx context.Context, c *runtime.Container, config *ocispec.ImageConfig, user specs.User) (*specs.Spec, error) {
	h := e.host()
	args := arguments(c, config)
	if len(args) == 0 {
		return nil, problem.New(problem.FieldInvalid, "the image says no command and the request neither").
			WithField("spec.command").WithHint("say what to run")
	}
	opts := []oci.SpecOpts{oci.WithDefaultUnixDevices, seccomp.WithDefaultProfile()}
	spec, err := oci.GenerateSpec(e.namespaced(ctx), nil, &containers.Container{ID: c.ID}, opts...)
	if err != nil {
		return nil, fmt.Errorf("render spec of %s: %w", c.ID, err)
	}
	narrow(spec.Linux.Seccomp)
	spec.Version = specVersion
	spec.Hostname = c.Hostname
	spec.Process.Args = args
	spec.Process.User = user
	spec.Process.Cwd = cmp.Or(c.Workdir, config.WorkingDir, "/")
	spec.Process.Env = environment([]string{defaultPath}, gpu.Scrub(config.Env), gpu.Scrub(c.Env), []string{gpu.Void})
	spec.Process.NoNewPrivileges = !c.AllowNewPrivileges
	score := e.oomScore(ctx)
	spec.Process.OOMScoreAdj = &score
	if spec.Process.Rlimits, err = rlimits(c.Resources.Ulimits, e.maxFiles(ctx)); err != nil {
		return nil, err
	}
	spec.Mounts = mounts(spec.Mounts, c)
	spec.Linux.CgroupsPath = e.cgroup(c.ID)
	limit(spec.Linux.Resources, &c.Resources, h.swapLimit)
	for i := range spec.Linux.Namespaces {
		// Without a path it is a new namespace: never the host's.
		if spec.Linux.Namespaces[i].Type == specs.NetworkNamespace {
			spec.Linux.Namespaces[i].Path = c.NetNS
		}
	}
	if h.unified {
		// Else /sys/fs/cgroup inside would show the host's tree.
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return spec, addGPU(spec, c)
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// arguments follows Docker's rule: an entrypoint of the container's own drops
// the image's command.
func arguments(c *runtime.Container, config *ocispec.ImageConfig) []string {
	entrypoint, command := c.Entrypoint, c.Command
	if len(entrypoint) == 0 {
		entrypoint = config.Entrypoint
		if len(command) == 0 {
			command = config.Cmd
		}
	}
	return slices.Concat(entrypoint, command)
}

// environment joins lists of "NAME=value"; the last of a name wins and stands
// where the first did.
func environment(lists ...[]string) []string {
	var env []string
	at := make(map[string]int)
	for _, variable := range slices.Concat(lists...) {
		name, _, _ := strings.Cut(variable, "=")
		if i, found := at[name]; found {
			env[i] = variable
			continue
		}
		at[name] = len(env)
		env = append(env, variable)
	}
	return env
}

func rlimits(ulimits []runtime.Ulimit, maxFiles uint64) ([]specs.POSIXRlimit, error) {
	files := min(defaultFiles, maxFiles)
	limits := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: files, Hard: files}}
	for i, u := range ulimits {
		l := specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: rlimit(u.Soft), Hard: rlimit(u.Hard)}
		if l.Type == "RLIMIT_NOFILE" {
			l.Soft, l.Hard = min(l.Soft, maxFiles), min(l.Hard, maxFiles)
			limits[0] = l
			continue
		}
		if l.Soft > l.Hard {
			return nil, problem.New(problem.FieldInvalid, "ulimit %s: soft %d is above hard %d", u.Name, u.Soft, u.Hard).
				WithField(fmt.Sprintf("spec.resources.ulimits[%d]", i))
		}
		limits = append(limits, l)
	}
	return limits, nil
}

// rlimit turns -1 into RLIM_INFINITY.
func rlimit(n int64) uint64 {
	if n < 0 {
		return math.MaxUint64
	}
	return uint64(n)
}

func limit(to *specs.LinuxResources, r *runtime.Resources, swap bool) {
	if r.CPUMillis > 0 {
		quota, period := max(r.CPUMillis*cpuPeriod/1000, minCPUQuota), uint64(cpuPeriod)
		shares := uint64(min(max(r.CPUMillis*1024/1000, minShares), maxShares)) // who gets more when all want more
		to.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period, Shares: &shares}
	}
	if r.MemoryBytes > 0 {
		memory := r.MemoryBytes
		to.Memory = &specs.LinuxMemory{Limit: &memory}
		if swap {
			// The spec counts memory and swap together.
			both := r.MemoryBytes + min(r.SwapBytes, math.MaxInt64-r.MemoryBytes)
			to.Memory.Swap = &both
		}
	}
	if r.Pids > 0 {
		pids := r.Pids
		to.Pids = &specs.LinuxPids{Limit: &pids}
	}
}

// mounts adds a container's to the default ones. One at the target of a
// default mount replaces it, and a parent comes before what lies below it.
func mounts(all []specs.Mount, c *runtime.Container) []specs.Mount {
	for i := range all {
		if all[i].Destination == "/dev/shm" {
			size := cmp.Or(c.Resources.ShmBytes, defaultShm)
			all[i].Options = append(slices.DeleteFunc(all[i].Options, isSize), fmt.Sprintf("size=%d", size))
		}
	}
	all = append(all, specs.Mount{
		Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"},
	})
	own := slices.Clone(c.Mounts)
	slices.SortStableFunc(own, func(a, b volume.Staged) int {
		return cmp.Compare(strings.Count(path.Clean(a.Target), "/"), strings.Count(path.Clean(b.Target), "/"))
	})
	for _, m := range own {
		target := path.Clean(m.Target)
		all = slices.DeleteFunc(all, func(d specs.Mount) bool { return d.Destination == target })
		options := slices.Clone(m.Options)
		if m.FSType == "tmpfs" && !slices.ContainsFunc(options, isSize) {
			options = append(options, fmt.Sprintf("size=%d", defaultTmpfs))
		}
		if m.FSType == "bind" && !slices.Contains(options, "bind") && !slices.Contains(options, "rbind") {
			options = append(options, "rbind")
		}
		all = append(all, specs.Mount{Destination: target, Type: m.FSType, Source: m.Source, Options: options})
	}
	return all
}

func isSize(option string) bool { return strings.HasPrefix(option, "size=") }
