package inject

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	cdi "tags.cncf.io/container-device-interface/specs-go"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/atomicfile"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// requests is where the hook looks for the devices that a container is to have:
// a mount of /dev/null at a path that ends with the UUID. Variables decide
// nothing by our configuration.
const requests = "/var/run/nvidia-container-devices/"

// configName is the hook's configuration in Config.Dir.
const configName = "nvidia-container-runtime-hook.toml"

// modesetNode is what an X server of the container's needs.
const modesetNode = "/dev/nvidia-modeset"

func hasNode(edits gpu.Edits, name string) bool {
	return slices.ContainsFunc(edits.CDI.DeviceNodes, func(node *cdi.DeviceNode) bool { return node.Path == name })
}

// manifests are where the loaders of EGL, Vulkan and OpenCL find what the driver
// has. nvidia-container-cli brings libraries and programs alone: in the toolkit
// these files are those of the runtime (internal/modifier/graphics.go).
var manifests = []string{"/etc/glvnd", "/usr/share/glvnd", "/usr/share/egl", "/etc/vulkan", "/usr/share/vulkan", "/etc/OpenCL"}

// libraries are where nvidia-container-cli puts libraries: as the container's
// distribution has it, not the host's (libnvidia-container, src/nvc_container.c).
var libraries = []string{"/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"}

// byHook has the toolkit's hook of before bring the driver's libraries. Nodes
// and the rules for them stay in the spec, so that no reload of the host's
// cgroups takes them away; what they are the edits say. So do the manifests,
// which the hook does not bring, and its libraries are told as Brought.
func (d *Driver) byHook(edits gpu.Edits, req gpu.EditsRequest) (gpu.Edits, error) {
	config, err := d.writeConfig()
	if err != nil {
		return gpu.Edits{}, err
	}
	capabilities := make([]string, 0, len(req.Capabilities))
	for _, capability := range req.Capabilities {
		if capability == gpu.Display && !hasNode(edits, modesetNode) {
			continue // the edits have left it out, and say so
		}
		capabilities = append(capabilities, string(capability))
	}
	if len(capabilities) == 0 {
		capabilities = []string{string(gpu.Compute), string(gpu.Utility)}
	}
	slices.Sort(capabilities)
	var mounts []*cdi.Mount
	var brought []string
	for _, m := range edits.CDI.Mounts {
		if slices.ContainsFunc(manifests, func(dir string) bool { return gpu.Within(m.ContainerPath, dir) }) {
			mounts = append(mounts, m)
			continue
		}
		brought = append(brought, m.ContainerPath)
		if name := path.Base(m.ContainerPath); strings.Contains(name, ".so") {
			for _, dir := range libraries {
				brought = append(brought, path.Join(dir, name))
			}
		}
	}
	for _, target := range req.Targets {
		id := target.GPU
		if target.MIG != "" {
			id = target.MIG
		}
		mounts = append(mounts, &cdi.Mount{HostPath: "/dev/null", ContainerPath: requests + id, Options: []string{"bind", "ro", "nosuid", "noexec"}})
	}
	env := slices.DeleteFunc(slices.Clone(edits.CDI.Env), func(variable string) bool { return strings.HasPrefix(variable, "NVIDIA_") })
	return gpu.Edits{
		CDI: cdi.ContainerEdits{
			Env:         append(env, gpu.Void, gpu.DriverCapabilities+"="+strings.Join(capabilities, ",")),
			DeviceNodes: edits.CDI.DeviceNodes,
			Mounts:      mounts,
			Hooks: []*cdi.Hook{{
				HookName: "createRuntime", Path: d.cfg.RuntimeHook,
				Args: []string{filepath.Base(d.cfg.RuntimeHook), "-config=" + config, "prestart"}, Env: hookEnv(),
			}},
			AdditionalGIDs: edits.CDI.AdditionalGIDs,
		},
		Brought:  brought,
		Warnings: edits.Warnings,
	}, nil
}

// writeConfig writes the hook's configuration, whole each time: whatever is in
// the host's own is not ours. A container's variables ask for nothing
// (accept-nvidia-visible-devices-envvar-when-unprivileged), not even by being
// absent where an image has CUDA_VERSION, and stop nothing (disable-require).
func (d *Driver) writeConfig() (string, error) {
	if d.cfg.Dir == "" || !filepath.IsAbs(d.cfg.CLI) {
		return "", problem.New(problem.GPUToolkitMissing, "the place of nvidia-container-cli is not known").
			WithHint("install libnvidia-container-tools, or set its place in the section gpu of the configuration")
	}
	if _, err := os.Stat(d.cfg.CLI); err != nil {
		return "", problem.New(problem.GPUToolkitMissing, "nvidia-container-cli cannot be used: %v", err).WithCause(err).
			WithHint("install libnvidia-container-tools, or set its place in the section gpu of the configuration")
	}
	if p := checkProgram(d.cfg.CLI); p != nil {
		return "", p
	}
	root := ""
	if d.cfg.DriverRoot != "/" {
		root = "root = " + strconv.Quote(d.cfg.DriverRoot) + "\n"
	}
	text := `# Written by remotegpud at each start of an environment with a GPU.
disable-require = true
accept-nvidia-visible-devices-envvar-when-unprivileged = false
accept-nvidia-visible-devices-as-volume-mounts = true
supported-driver-capabilities = "compute,display,graphics,utility,video"

[nvidia-container-cli]
path = ` + strconv.Quote(d.cfg.CLI) + "\n" + root + `load-kmods = true
no-cgroups = true
ldconfig = "@/sbin/ldconfig"

[nvidia-container-runtime]
mode = "legacy"

[features]
ignore-imex-channel-requests = true
disable-imex-channel-creation = true
`
	if err := os.MkdirAll(d.cfg.Dir, 0o700); err != nil {
		return "", fmt.Errorf("make directory of the hook's configuration: %w", err)
	}
	file := filepath.Join(d.cfg.Dir, configName)
	if err := atomicfile.WriteUnsynced(file, []byte(text), 0o600); err != nil {
		return "", fmt.Errorf("write the hook's configuration: %w", err)
	}
	return file, nil
}
