package nvidia

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	nvdevice "github.com/NVIDIA/go-nvlib/pkg/nvlib/device"
	"github.com/NVIDIA/go-nvml/pkg/dl"
	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/trusted"
)

// errNoLibrary: the host has no NVML, so no driver of NVIDIA's.
var errNoLibrary = errors.New("NVML is not installed")

// changed is an error that another process, which loads the library anew, may
// not have: the driver was upgraded, or loaded, since this one did.
type changed struct{ error }

// Stale tells gpu/helper to ask a fresh process.
func (changed) Stale() bool { return true }

func (c changed) Unwrap() error { return c.error }

// open loads NVML and initializes it. Close ends that. errNoLibrary where
// there is none, nor a GPU that the kernel's driver has: only then a host may be
// said to have no GPU of NVIDIA's.
func (d *Driver) open() (*session, error) {
	path := d.cfg.library()
	if d.lib == nil || d.path != path {
		err := load(path)
		if errors.Is(err, errNoLibrary) && slices.ContainsFunc(d.cfg.cards(), card.driven) {
			return nil, problem.New(problem.GPUUnavailable, "the kernel's NVIDIA driver is loaded but NVML (%s) is not installed", path).
				WithHint("wait until the driver's installation is done, or install what of it is missing")
		}
		if err != nil {
			return nil, err
		}
		d.lib, d.path = nvml.New(nvml.WithLibraryPath(path)), path
	}
	switch ret := d.lib.Init(); ret {
	case nvml.SUCCESS:
		return &session{Driver: d, devices: nvdevice.New(d.lib)}, nil
	case nvml.ERROR_LIBRARY_NOT_FOUND: // it was there a moment ago
		d.lib = nil
		return nil, changed{problem.New(problem.GPUUnavailable, "NVML (%s) cannot be loaded any more", path).
			WithHint("wait until the driver's installation is done")}
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		return nil, changed{problem.New(problem.GPUUnavailable, "NVML (%s) and the kernel's NVIDIA driver are of different versions", path).
			WithHint("the driver was upgraded: stop what uses the GPUs and load the kernel module again, or reboot")}
	case nvml.ERROR_DRIVER_NOT_LOADED:
		return nil, changed{problem.New(problem.GPUUnavailable, "NVIDIA's driver is installed but not loaded").
			WithHint("load it with: modprobe nvidia; and see the host's kernel log")}
	default:
		return nil, failure(ret, "initialize NVML")
	}
}

// load tells apart a host without NVML from one whose NVML is broken, which
// go-nvml does not.
func load(path string) error {
	if filepath.IsAbs(path) {
		if err := trusted.Library(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return problem.New(problem.GPUUnavailable, "NVML (%s) cannot be trusted: %v", path, err).WithCause(err).
				WithHint("it runs as root: give it and the directories above it to root, and let nobody else write there")
		}
	}
	library := dl.New(path, dl.RTLD_LAZY|dl.RTLD_GLOBAL)
	err := library.Open()
	switch {
	case err == nil:
		if err := library.Close(); err != nil {
			return problem.New(problem.GPUUnavailable, "NVML cannot be used").WithCause(err)
		}
		return nil
	case strings.HasPrefix(err.Error(), path+": cannot open shared object file: No such file"):
		return errNoLibrary
	default: // a dependency of it is missing, it is of another architecture, not to be read
		return problem.New(problem.GPUUnavailable, "NVML is installed but cannot be loaded").WithCause(err).
			WithHint("install NVIDIA's driver again")
	}
}

func (s *session) close() { _ = s.lib.Shutdown() } // nothing is left to do when it fails

// driver opens NVML for a call that needs a driver: without one the host is
// not able to do what was asked.
func (d *Driver) driver() (*session, error) {
	s, err := d.open()
	if errors.Is(err, errNoLibrary) {
		return nil, errNoDriver()
	}
	return s, err
}

func errNoDriver() error {
	return problem.New(problem.GPUUnavailable, "this host has no NVIDIA driver").WithHint("install one; see: remotegpu gpu ls")
}

// failure is a call of NVML's that failed.
func failure(ret nvml.Return, format string, args ...any) error {
	reason, hint := problem.GPUUnavailable, "see the daemon's log and the host's kernel log (NVRM)"
	switch ret {
	case nvml.ERROR_GPU_IS_LOST, nvml.ERROR_RESET_REQUIRED:
		hint = "the GPU does not answer any more: drain it (remotegpu gpu drain), end what has it open and reset it (nvidia-smi -r), or reboot the host"
	case nvml.ERROR_IN_USE:
		reason, hint = problem.GPUInUse, "end the processes that use it"
	case nvml.ERROR_NOT_SUPPORTED, nvml.ERROR_FUNCTION_NOT_FOUND:
		reason, hint = problem.GPUUnsupported, ""
	case nvml.ERROR_NO_PERMISSION:
		hint = "remotegpud needs to be root on the host itself, not in a container"
	case nvml.ERROR_NOT_FOUND:
		reason, hint = problem.GPUNotFound, "see what there is: remotegpu gpu ls"
	default:
	}
	p := problem.New(reason, format, args...).WithCause(ret)
	if hint != "" {
		p = p.WithHint("%s", hint)
	}
	return p
}

// unsupported says that the driver lacks a function.
func unsupported(format string, args ...any) error {
	return problem.New(problem.GPUUnsupported, format, args...)
}
