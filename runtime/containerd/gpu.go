package containerd

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	cdispec "tags.cncf.io/container-device-interface/specs-go"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/trusted"
	"github.com/remotegpu/remotegpu/runtime"
)

// hookTimeout is how many seconds a hook may take that says none itself: one
// that hangs would keep the start, and its caller, for good.
const hookTimeout = 60

// addGPU puts what the environment's GPUs take into a spec, over everything
// that is there already. What a container without one must not have is refused
// as well: the checks of requests may be younger than the environment.
func addGPU(spec *specs.Spec, c *runtime.Container) error {
	if err := checkTargets(c); err != nil {
		return err
	}
	// Nothing of ours needs annotations, and those that name devices would have
	// a runtime that looks at them add these.
	spec.Annotations = nil
	if c.GPU == nil {
		return nil
	}
	edits := editsOf(c)
	if err := checkPaths(edits); err != nil {
		return err
	}
	// The engine remembers users; what is appended to one must not be theirs.
	spec.Process.User.AdditionalGids = slices.Clone(spec.Process.User.AdditionalGids)
	added := cdi.ContainerEdits{ContainerEdits: edits}
	err := added.Validate()
	if err == nil {
		err = added.Apply(spec)
	}
	if err != nil {
		return notInjected("what the GPUs of the environment take does not fit into a container: %v", err)
	}
	spec.Mounts = behind(spec.Mounts, edits.Mounts)
	return checkHooks(spec.Hooks)
}

// editsOf are the edits of a container, as far as they do not go over variables
// that its own request sets and may set.
func editsOf(c *runtime.Container) *cdispec.ContainerEdits {
	edits := c.GPU.CDI
	own := make(map[string]bool, len(c.Env))
	for _, variable := range c.Env {
		name, _, _ := strings.Cut(variable, "=")
		own[name] = !gpu.Reserved(name)
	}
	edits.Env = slices.DeleteFunc(slices.Clone(edits.Env), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return own[name]
	})
	// What is missing in nodes is filled in where they are.
	edits.DeviceNodes = make([]*cdispec.DeviceNode, len(c.GPU.CDI.DeviceNodes))
	for i, node := range c.GPU.CDI.DeviceNodes {
		copied := *node
		edits.DeviceNodes[i] = &copied
	}
	edits.Hooks = make([]*cdispec.Hook, len(c.GPU.CDI.Hooks))
	for i, hook := range c.GPU.CDI.Hooks {
		limited := *hook
		if limited.Timeout == nil {
			timeout := hookTimeout
			limited.Timeout = &timeout
		}
		edits.Hooks[i] = &limited
	}
	return &edits
}

// checkTargets refuses mounts that are in the way of what GPUs bring with them.
func checkTargets(c *runtime.Container) error {
	for _, m := range c.Mounts {
		place, is := gpu.ReservedTarget(m.Target, c.GPU != nil)
		if !is && c.GPU != nil {
			place, is = c.GPU.TargetOf(m.Target)
		}
		if is {
			return problem.New(problem.FieldInvalid, "the mount at %s is in the way of %s, which belongs to the environment's GPUs", m.Target, place).
				WithField("spec.mounts").WithHint("mount it somewhere else")
		}
	}
	return nil
}

// checkPaths looks for what is to be mounted: the driver may have changed since
// the edits were computed, and a runtime's own words do not say so.
func checkPaths(edits *cdispec.ContainerEdits) error {
	paths := make([]string, 0, len(edits.Mounts)+len(edits.DeviceNodes))
	for _, m := range edits.Mounts {
		if m.Type == "" || m.Type == "bind" {
			paths = append(paths, m.HostPath)
		}
	}
	for _, node := range edits.DeviceNodes {
		if node.Type == "" || node.Major == 0 {
			paths = append(paths, cmp.Or(node.HostPath, node.Path))
		}
	}
	for _, path := range paths {
		if _, err := os.Stat(path); err != nil {
			return notInjected("%s, which the GPUs of the environment take, cannot be used: %v", path, errors.Unwrap(err)).WithCause(err).
				WithHint("start it again when the installation of the driver is over; see whether nvidia-smi works on the host")
		}
	}
	return nil
}

// behind moves the mounts of GPUs behind all others, so that no other covers
// them or decides where they end up.
func behind(mounts []specs.Mount, gpus []*cdispec.Mount) []specs.Mount {
	last := make(map[string]bool, len(gpus))
	for _, m := range gpus {
		last[m.ContainerPath] = true
	}
	var first, rest []specs.Mount
	for _, m := range mounts {
		if last[m.Destination] {
			rest = append(rest, m)
		} else {
			first = append(first, m)
		}
	}
	return slices.Concat(first, rest)
}

// checkHooks refuses hooks that somebody else than root could change, and those
// whose environment is not said. Some run as root on the host; without an
// environment of their own they get the daemon's, or with runc 1.1 that of the
// container, LD_PRELOAD included (CVE-2025-23266). An empty one does not count:
// the spec's encoding leaves it out.
func checkHooks(hooks *specs.Hooks) error {
	if hooks == nil {
		return nil
	}
	if len(hooks.StartContainer) > 0 { // its program is the container's own
		return notInjected("the hook %s would run inside the container", hooks.StartContainer[0].Path)
	}
	//nolint:staticcheck // prestart is deprecated, and run all the same
	for _, hook := range slices.Concat(hooks.Prestart, hooks.CreateRuntime, hooks.CreateContainer, hooks.Poststart, hooks.Poststop) {
		if len(hook.Env) == 0 {
			return notInjected("the hook %s has no environment of its own", hook.Path)
		}
		if err := checkProgram(hook.Path); err != nil {
			return err
		}
	}
	return nil
}

// checkProgram refuses a program that another user than root could change or
// replace.
func checkProgram(name string) error {
	err := trusted.Program(name)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return problem.New(problem.GPUToolkitMissing, "the hook %s is not there", name).WithCause(err).
			WithHint("install the NVIDIA Container Toolkit, or set its place in the section gpu of the configuration")
	default:
		return notInjected("the hook %s cannot be trusted: %v", name, err).WithCause(err).
			WithHint("it runs as root: give it and the directories above it to root, and let nobody else write there")
	}
}

func notInjected(format string, args ...any) *problem.Problem {
	return problem.New(problem.GPUInjectionFailed, format, args...).
		WithHint("the environment is not at fault: have the setup of the node's GPU driver and container toolkit looked at")
}
