package nvidia

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// SetExclusiveProcess implements gpu.Driver. Without a driver no GPU is closed to
// anybody.
func (d *Driver) SetExclusiveProcess(_ context.Context, gpuUUID string, on bool) error {
	s, err := d.open()
	if errors.Is(err, errNoLibrary) {
		if !on {
			return nil
		}
		err = errNoDriver()
	}
	if err != nil {
		return err
	}
	defer s.close()
	handle, err := s.whole(gpuUUID)
	if err != nil {
		return err
	}
	mode := nvml.COMPUTEMODE_DEFAULT
	if on {
		mode = nvml.COMPUTEMODE_EXCLUSIVE_PROCESS
	}
	if s.has("nvmlDeviceGetComputeMode") { // a GPU that has no modes has the default
		now, ret := handle.GetComputeMode()
		if ret == nvml.SUCCESS && now == mode || ret == nvml.ERROR_NOT_SUPPORTED && !on {
			return nil
		}
	}
	if ret := handle.SetComputeMode(mode); ret != nvml.SUCCESS {
		return failure(ret, "set the compute mode of GPU %s", gpuUUID)
	}
	return nil
}

// SetMemoryLimit implements gpu.Driver: nvmlDeviceSetMemoryLimits_v1, which
// drivers have since R615. The limit is also what the processes are sure of.
func (d *Driver) SetMemoryLimit(_ context.Context, gpuUUID, cgroup string, bytes uint64) error {
	if !filepath.IsAbs(cgroup) || filepath.Clean(cgroup) != cgroup || cgroup == "/" {
		return problem.New(problem.FieldInvalid, "%q is no cgroup: it is a path that begins with /", cgroup)
	}
	if !d.cfg.unified() {
		return unsupported("the driver limits memory by cgroup v2, which is not mounted at %s", d.cfg.Cgroup)
	}
	s, err := d.driver()
	if err != nil {
		return err
	}
	defer s.close()
	if !s.limitsMemory() {
		return unsupported("the driver cannot limit the memory of a cgroup: that takes R615 or newer")
	}
	handle, err := s.whole(gpuUUID)
	if err != nil {
		return err
	}
	soft, hard := bytes, bytes
	if bytes == 0 {
		hard = nvml.DEVICE_MEMORY_LIMIT_MAX
	}
	path := filepath.Join(d.cfg.Cgroup, strings.TrimPrefix(cgroup, "/"))
	switch ret := handle.SetMemoryLimits_v1(path, soft, hard); ret {
	case nvml.SUCCESS:
		return nil
	case nvml.ERROR_INVALID_ARGUMENT:
		return problem.New(problem.FieldInvalid, "GPU %s does not take a limit of %d bytes: it has less, or its holders are sure of too much", gpuUUID, bytes)
	case nvml.ERROR_OPERATING_SYSTEM:
		return problem.New(problem.GPUUnavailable, "the driver cannot open the cgroup %s", path).WithHint("does the environment still run?")
	default:
		return failure(ret, "limit the memory of %s on GPU %s", cgroup, gpuUUID)
	}
}

// MemoryUsed implements gpu.Driver: nvmlDeviceGetMemoryLimits_v1.
func (d *Driver) MemoryUsed(ctx context.Context, gpuUUID string, cgroups []string) (map[string]uint64, error) {
	s, err := d.driver()
	if err != nil {
		return nil, err
	}
	defer s.close()
	if !s.cfg.unified() || !s.has("nvmlDeviceGetMemoryLimits_v1") {
		return nil, unsupported("the driver does not tell what memory a cgroup uses: that takes R615 or newer, and cgroup v2")
	}
	handle, err := s.whole(gpuUUID)
	if err != nil {
		return nil, err
	}
	used := make(map[string]uint64, len(cgroups))
	for _, cgroup := range cgroups {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		limits, ret := handle.GetMemoryLimits_v1(filepath.Join(d.cfg.Cgroup, strings.TrimPrefix(cgroup, "/")))
		switch ret {
		case nvml.SUCCESS:
			used[cgroup] = limits.CurrentUsed
		case nvml.ERROR_OPERATING_SYSTEM, nvml.ERROR_NOT_FOUND, nvml.ERROR_INVALID_ARGUMENT: // it has ended
		default:
			return nil, failure(ret, "find out what memory %s uses on GPU %s", cgroup, gpuUUID)
		}
	}
	return used, nil
}

// limitsMemory says whether the driver can limit the memory of a cgroup.
func (s *session) limitsMemory() bool {
	return s.cfg.unified() && s.has("nvmlDeviceSetMemoryLimits_v1")
}

// unified says whether the host has cgroup v2, and no other.
func (c *Config) unified() bool {
	_, err := os.Stat(filepath.Join(c.Cgroup, "cgroup.controllers"))
	return err == nil
}
