package nvidia

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	nvdevice "github.com/NVIDIA/go-nvlib/pkg/nvlib/device"
	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// Config is where NVIDIA's software is. The zero value is that of a host whose
// driver and toolkit were installed as packages.
type Config struct {
	DriverRoot string `json:"driver_root,omitempty"` // directory that the driver is installed below; "": /
	DevRoot    string `json:"dev_root,omitempty"`    // directory that has dev; "": /
	Library    string `json:"library,omitempty"`     // NVML; "": libnvidia-ml.so.1 of the driver root
	Hook       string `json:"hook,omitempty"`        // nvidia-cdi-hook; "": that of /usr/bin
	Ldconfig   string `json:"ldconfig,omitempty"`    // what the hook runs in containers; "": the host's
	Modprobe   string `json:"modprobe,omitempty"`    // nvidia-modprobe, which makes device nodes; "": that of /usr/bin
	Sys        string `json:"sys,omitempty"`         // "": /sys
	Proc       string `json:"proc,omitempty"`        // "": /proc
	Cgroup     string `json:"cgroup,omitempty"`      // where cgroup v2 is mounted; "": /sys/fs/cgroup
}

// complete fills in the defaults.
func (c Config) complete() Config {
	for _, field := range []struct {
		value *string
		path  string
	}{
		{&c.DriverRoot, "/"},
		{&c.DevRoot, "/"},
		{&c.Hook, "/usr/bin/nvidia-cdi-hook"},
		{&c.Modprobe, "/usr/bin/nvidia-modprobe"},
		{&c.Sys, "/sys"},
		{&c.Proc, "/proc"},
		{&c.Cgroup, "/sys/fs/cgroup"},
	} {
		if *field.value == "" {
			*field.value = field.path
		}
	}
	if c.Ldconfig == "" {
		c.Ldconfig = "/sbin/ldconfig"
		if _, err := os.Stat("/sbin/ldconfig.real"); err == nil {
			c.Ldconfig = "/sbin/ldconfig.real" // Ubuntu's ldconfig is a script
		}
	}
	return c
}

// Driver is gpu.Driver. One call at a time: NVML is shared by the process.
type Driver struct {
	cfg  Config
	path string // of the library that lib loads
	lib  nvml.Interface
}

var _ gpu.Driver = (*Driver)(nil)

// New returns the driver. It looks at nothing; the first call does.
func New(cfg Config) *Driver { return &Driver{cfg: cfg.complete()} }

// Open is New with a Config as JSON, for gpu/helper.
func Open(settings json.RawMessage) (gpu.Driver, error) {
	var cfg Config
	if err := json.Unmarshal(settings, &cfg); err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	return New(cfg), nil
}

// libraryDirs are where packages put NVML, as the container toolkit looks for
// it (lookup.NewLibraryLocator).
var libraryDirs = []string{
	"usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib/x86_64-linux-gnu/nvidia/current",
	"usr/lib/aarch64-linux-gnu/nvidia/current", "lib64", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu",
}

const libraryName = "libnvidia-ml.so.1"

// library is the path of NVML, or its name alone where the dynamic linker
// finds it.
func (c Config) library() string {
	if c.Library != "" {
		return c.Library
	}
	if c.DriverRoot == "/" {
		return libraryName
	}
	for _, dir := range libraryDirs {
		path := filepath.Join(c.DriverRoot, dir, libraryName)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return filepath.Join(c.DriverRoot, libraryDirs[0], libraryName)
}

// session is NVML between its init and its shutdown: no device stays open
// after a call, so that the driver can be unloaded and a GPU be reset.
type session struct {
	*Driver
	devices nvdevice.Interface
}

// has says whether the library has a symbol.
func (s *session) has(symbol string) bool { return s.lib.Extensions().LookupSymbol(symbol) == nil }

// handle finds a GPU. GPU_NOT_FOUND.
func (s *session) handle(uuid string) (nvml.Device, error) {
	device, ret := s.lib.DeviceGetHandleByUUID(uuid)
	switch ret {
	case nvml.SUCCESS:
		return device, nil
	case nvml.ERROR_NOT_FOUND, nvml.ERROR_INVALID_ARGUMENT:
		return nil, problem.New(problem.GPUNotFound, "NVIDIA's driver has no GPU %s", uuid).WithHint("see what there is: remotegpu gpu ls")
	default: // also when it is another that does not answer
		if device := s.search(uuid); device != nil {
			return device, nil
		}
		return nil, failure(ret, "find GPU %s", uuid)
	}
}

// search finds a GPU, or an instance of one, among those that answer; nil when
// it is none of them.
func (s *session) search(uuid string) nvml.Device {
	handles, _, err := s.all()
	if err != nil {
		return nil
	}
	is := func(device nvml.Device) bool {
		found, ret := device.GetUUID()
		return ret == nvml.SUCCESS && found == uuid
	}
	for _, handle := range handles {
		if is(handle) {
			return handle
		}
		if !strings.HasPrefix(uuid, "MIG-") {
			continue
		}
		count, ret := handle.GetMaxMigDeviceCount()
		for index := 0; ret == nvml.SUCCESS && index < count; index++ {
			if instance, ret := handle.GetMigDeviceHandleByIndex(index); ret == nvml.SUCCESS && is(instance) {
				return instance
			}
		}
	}
	return nil
}

// whole finds a GPU and refuses what is an instance of one.
func (s *session) whole(uuid string) (nvml.Device, error) {
	device, err := s.handle(uuid)
	if err != nil {
		return nil, err
	}
	if s.isInstance(device) {
		return nil, problem.New(problem.FieldInvalid, "%s is a MIG instance, not a GPU", uuid)
	}
	return device, nil
}

// all are the handles of the GPUs that answer, and the returns of those that
// do not, by index: one that is sick hides no other.
func (s *session) all() (map[int]nvml.Device, map[int]nvml.Return, error) {
	count, ret := s.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return nil, nil, failure(ret, "count GPUs")
	}
	devices, silent := make(map[int]nvml.Device, count), map[int]nvml.Return{}
	for index := range count {
		device, ret := s.lib.DeviceGetHandleByIndex(index)
		if ret == nvml.SUCCESS {
			devices[index] = device
		} else {
			silent[index] = ret
		}
	}
	return devices, silent, noneAnswers(len(devices), silent)
}

// noneAnswers is the failure of the driver that it is when no GPU answers; nil
// when some do, or when those that do not are lost.
func noneAnswers(answering int, silent map[int]nvml.Return) error {
	if answering > 0 {
		return nil
	}
	for _, index := range slices.Sorted(maps.Keys(silent)) {
		if ret := silent[index]; !isLost(ret) {
			return failure(ret, "find GPU %d", index)
		}
	}
	return nil
}

func isLost(ret nvml.Return) bool {
	return slices.Contains([]nvml.Return{nvml.ERROR_GPU_IS_LOST, nvml.ERROR_RESET_REQUIRED}, ret)
}
