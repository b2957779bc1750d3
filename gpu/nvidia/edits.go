package nvidia

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/nvidia-container-toolkit/pkg/nvcdi"
	cdi "tags.cncf.io/container-device-interface/specs-go"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/hostexec"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/trusted"
)

// Edits implements gpu.Driver by nvcdi, which finds all of the driver's files.
// Those of capabilities that were not asked for are left out; what is for
// computing is always there, as nvcdi has it.
func (d *Driver) Edits(ctx context.Context, req gpu.EditsRequest) (gpu.Edits, error) {
	if len(req.Targets) == 0 {
		return gpu.Edits{}, problem.New(problem.FieldInvalid, "no GPU was named")
	}
	if _, err := os.Stat(d.cfg.Hook); err != nil {
		return gpu.Edits{}, problem.New(problem.GPUToolkitMissing, "the container toolkit's hook %s is not there", d.cfg.Hook).WithCause(err).
			WithHint("install nvidia-container-toolkit, or set gpu.hook in the configuration")
	}
	if err := trusted.Program(d.cfg.Ldconfig); err != nil { // the hook runs it
		return gpu.Edits{}, problem.New(problem.GPUInjectionFailed, "%s cannot be used: %v", d.cfg.Ldconfig, err).WithCause(err).
			WithHint("it runs as root: give it and the directories above it to root, or set gpu.ldconfig in the configuration")
	}
	s, err := d.driver()
	if err != nil {
		return gpu.Edits{}, err
	}
	defer s.close()
	ids, drawing, err := s.identify(req.Targets)
	if err != nil {
		return gpu.Edits{}, err
	}
	found, err := s.discover(ids)
	if err != nil {
		return gpu.Edits{}, err
	}
	if nodes := lacking(found, req); len(nodes) > 0 {
		s.makeNodes(ctx, nodes)
		if found, err = s.discover(ids); err != nil {
			return gpu.Edits{}, err
		}
		if nodes := lacking(found, req); len(nodes) > 0 {
			return gpu.Edits{}, missing("device node %s", strings.Join(nodes, ", ")).
				WithHint("make them: nvidia-modprobe -u -c=0, or nvidia-smi once; they go with each reboot")
		}
	}
	edits := merge(found, s.cfg.DevRoot)
	warnings := filter(&edits, req.Capabilities, drawing)
	if err := d.checkFiles(edits); err != nil {
		return gpu.Edits{}, err
	}
	return gpu.Edits{CDI: edits, Warnings: warnings}, nil
}

func missing(format string, args ...any) *problem.Problem {
	return problem.New(problem.GPUSoftwareMissing, format+" is not there", args...)
}

// identify checks what was asked for and gives it nvcdi's names. drawing says
// whether all of it can draw.
func (s *session) identify(targets []gpu.Target) (ids []string, drawing bool, err error) {
	drawing = true
	for _, target := range targets {
		handle, err := s.whole(target.GPU)
		if err != nil {
			return nil, false, err
		}
		id := target.GPU
		if target.MIG == "" {
			if err := s.undivided(target.GPU, handle); err != nil {
				return nil, false, err
			}
		} else {
			id = target.MIG
			graphics, err := s.instanceOf(target)
			if err != nil {
				return nil, false, err
			}
			drawing = drawing && graphics
		}
		if slices.Contains(ids, id) {
			return nil, false, problem.New(problem.FieldInvalid, "%s was named twice", id)
		}
		ids = append(ids, id)
	}
	return ids, drawing, nil
}

// undivided refuses a GPU whose MIG mode is on: nothing runs on it as a whole.
func (s *session) undivided(uuid string, handle nvml.Device) error {
	if !s.has("nvmlDeviceGetMigMode") {
		return nil
	}
	if current, _, ret := handle.GetMigMode(); ret == nvml.SUCCESS && current == nvml.DEVICE_MIG_ENABLE {
		return problem.New(problem.GPUModeConflict, "MIG is on on GPU %s: it can be used by its instances only", uuid).
			WithHint("ask for a MIG profile, or turn MIG off: remotegpu gpu mig mode %s off", uuid)
	}
	return nil
}

// instanceOf checks that a MIG instance is there and of its GPU, and says
// whether it can draw.
func (s *session) instanceOf(target gpu.Target) (graphics bool, err error) {
	handle, profiles, err := s.partitioned(target.GPU)
	if err != nil {
		return false, err
	}
	instances, ret := s.instances(handle, profiles)
	if ret != nvml.SUCCESS {
		return false, failure(ret, "list the MIG instances of GPU %s", target.GPU)
	}
	at := slices.IndexFunc(instances, func(i instance) bool { return i.UUID == target.MIG })
	if at < 0 {
		return false, problem.New(problem.MIGInstanceNotFound, "GPU %s has no MIG instance %s", target.GPU, target.MIG).
			WithHint("see those there are: remotegpu gpu get %s", target.GPU)
	}
	return strings.Contains(instances[at].Profile, graphicsSuffix), nil
}

// discovered is what nvcdi found.
type discovered struct {
	devices []cdi.Device // as asked for
	common  *cdi.ContainerEdits
}

// discover asks nvcdi anew: it keeps what it has found.
func (s *session) discover(ids []string) (discovered, error) {
	namer, err := nvcdi.NewDeviceNamer(nvcdi.DeviceNameStrategyUUID)
	if err != nil {
		return discovered{}, fmt.Errorf("name devices by UUID: %w", err)
	}
	lib, err := nvcdi.New(
		nvcdi.WithLogger(silence{}), nvcdi.WithNvmlLib(s.lib), nvcdi.WithDeviceLib(s.devices), nvcdi.WithMode(nvcdi.ModeNvml),
		nvcdi.WithDeviceNamers(namer), nvcdi.WithDriverRoot(s.cfg.DriverRoot), nvcdi.WithDevRoot(s.cfg.DevRoot),
		nvcdi.WithNVIDIACDIHookPath(s.cfg.Hook), nvcdi.WithLdconfigPath(s.cfg.Ldconfig),
		// Limits are set by the node, not by what stands in the container's
		// environment; sockets of the host's MPS and persistenced are not given
		// away; nvsandboxutils is another library that could fail.
		nvcdi.WithDisabledHooks("apply-cuda-memory-limits"),
		nvcdi.WithFeatureFlags(nvcdi.FeatureDisableNvsandboxUtils, nvcdi.FeatureDisableIPCDiscoverer),
	)
	if err != nil {
		return discovered{}, notFound(err)
	}
	var found discovered
	if found.devices, err = lib.GetDeviceSpecsByID(ids...); err != nil {
		return discovered{}, notFound(err)
	}
	if len(found.devices) != len(ids) {
		return discovered{}, notFound(fmt.Errorf("%d devices for %d", len(found.devices), len(ids)))
	}
	common, err := lib.GetCommonEdits()
	if err != nil {
		return discovered{}, notFound(err)
	}
	found.common = common.ContainerEdits
	return found, nil
}

// notFound is a failure of nvcdi's: it looks for files.
func notFound(err error) error {
	return problem.New(problem.GPUSoftwareMissing, "the files of NVIDIA's driver were not found").WithCause(err).
		WithHint("is the driver installed whole, and the one that is loaded? After an upgrade reboot, or load its modules again")
}

// lacking names device nodes without which nothing works; nvcdi leaves out what
// it does not find.
func lacking(found discovered, req gpu.EditsRequest) []string {
	var missing []string
	has := func(edits *cdi.ContainerEdits, path string) bool {
		return slices.ContainsFunc(edits.DeviceNodes, func(n *cdi.DeviceNode) bool { return n.Path == path })
	}
	for _, path := range []string{"/dev/nvidiactl", "/dev/nvidia-uvm"} {
		if !has(found.common, path) {
			missing = append(missing, path)
		}
	}
	for i, device := range found.devices {
		nodes, caps := 0, 0
		for _, node := range device.ContainerEdits.DeviceNodes {
			if isGPUNode(node.Path) {
				nodes++
			}
			if strings.HasPrefix(node.Path, capsDir) {
				caps++
			}
		}
		if nodes == 0 {
			missing = append(missing, "/dev/nvidiaN of "+req.Targets[i].GPU)
		}
		if req.Targets[i].MIG != "" && caps < 2 { // of the GPU and of the compute instance
			missing = append(missing, capsDir+"* of "+req.Targets[i].MIG)
		}
	}
	return missing
}

const capsDir = "/dev/nvidia-caps/"

// isGPUNode says whether a path is /dev/nvidiaN.
func isGPUNode(path string) bool {
	number, found := strings.CutPrefix(path, "/dev/nvidia")
	return found && number != "" && strings.Trim(number, "0123456789") == ""
}

// makeNodes has nvidia-modprobe load modules and make nodes, as NVIDIA's tools
// do themselves when they run. What comes of it is looked at afterwards.
func (s *session) makeNodes(ctx context.Context, lacking []string) {
	if trusted.Program(s.cfg.Modprobe) != nil {
		return // it is not there, or others than root could have it run what they like
	}
	arguments := [][]string{{"-u", "-c=0"}}
	if slices.ContainsFunc(lacking, func(l string) bool { return strings.HasPrefix(l, capsDir) }) {
		files, err := filepath.Glob(filepath.Join(s.cfg.Proc, "driver/nvidia/capabilities/gpu*/mig/gi*/access"))
		compute, computeErr := filepath.Glob(filepath.Join(s.cfg.Proc, "driver/nvidia/capabilities/gpu*/mig/gi*/ci*/access"))
		if errors.Join(err, computeErr) == nil {
			for _, file := range append(files, compute...) {
				arguments = append(arguments, []string{"-f", file})
			}
		}
	}
	for _, args := range arguments {
		_, _ = hostexec.Run(ctx, nil, s.cfg.Modprobe, args...) // the nodes tell
	}
}

// checkFiles refuses edits that name what the host does not have: a start
// would fail with words of runc's. Hooks must not inherit an environment.
func (d *Driver) checkFiles(edits cdi.ContainerEdits) error {
	for _, mount := range edits.Mounts {
		if _, err := os.Stat(mount.HostPath); err != nil {
			return missing("the driver's file %s", mount.HostPath).WithCause(err).WithHint("was the driver upgraded just now? Try again")
		}
	}
	for _, node := range edits.DeviceNodes {
		path := node.HostPath
		if path == "" {
			path = node.Path
		}
		info, err := os.Stat(path)
		if err != nil {
			return missing("device node %s", path).WithCause(err).WithHint("try again; see the host's kernel log")
		}
		if info.Mode()&os.ModeCharDevice == 0 {
			return problem.New(problem.GPUSoftwareMissing, "%s is no device node", path)
		}
	}
	for _, hook := range edits.Hooks {
		if hook.Path != d.cfg.Hook || len(hook.Env) == 0 {
			return problem.New(problem.Internal, "nvcdi made a hook %s with the environment %v", hook.Path, hook.Env)
		}
	}
	return nil
}

// silence takes nvcdi's log: it warns of each of a hundred files that a host
// may or may not have.
type silence struct{}

func (silence) Debugf(string, ...any)   {}
func (silence) Errorf(string, ...any)   {}
func (silence) Infof(string, ...any)    {}
func (silence) Warningf(string, ...any) {}
func (silence) Tracef(string, ...any)   {}
