package cli

import (
	"encoding/csv"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// gpuFlags say which GPUs an environment is to have, as written.
type gpuFlags struct {
	gpus, mode, memory, profile string
	compute                     int32
	capabilities                []string
	unenforced                  bool
}

const gpuHelp = `GPUs: --gpus 1 gives it one alone, --gpus model=A100,count=2 two of a model, and
--gpus uuid=GPU-… a certain one; model and uuid may be there several times.
--gpu-mode shared shares it with others without a quota, mig gives an instance
of a partitioned one (--gpu-profile 1g.5gb), vgpu a share of its memory
(--gpu-memory 8G) and maybe of its compute (--gpu-compute 30). Otherwise
--gpu-memory is the least that the GPU has. --gpu-capabilities are some of
compute, utility, graphics, video and display.`

func gpuFlagNames() []string {
	return []string{"gpus", "gpu-mode", "gpu-memory", "gpu-compute", "gpu-profile", "gpu-capabilities", "gpu-allow-unenforced"}
}

func (f *gpuFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.gpus, "gpus", "", "GPUs: a number, or some of count=, model=, uuid= with commas")
	flags.StringVar(&f.mode, "gpu-mode", "", "how it has them: exclusive, shared, mig, vgpu (default exclusive)")
	flags.StringVar(&f.memory, "gpu-memory", "", "vgpu: share of the memory; otherwise the least that each GPU has")
	flags.Int32Var(&f.compute, "gpu-compute", 0, "vgpu: share of the compute, percent")
	flags.StringVar(&f.profile, "gpu-profile", "", "mig: profile, such as 1g.5gb")
	flags.StringSliceVar(&f.capabilities, "gpu-capabilities", nil, "parts of the driver that it gets (default compute,utility, and graphics with a desktop)")
	flags.BoolVar(&f.unenforced, "gpu-allow-unenforced", false, "vgpu: accept a share that nothing enforces")
}

func (f *gpuFlags) set(changed func(string) bool) bool {
	return slices.ContainsFunc(gpuFlagNames(), changed)
}

// apply changes a request as the flags say. Without one it makes one, and
// leaves it out where no flag was given. Another mode forgets what belongs to
// the one before.
func (f *gpuFlags) apply(before *remotegpuv1.GPURequest, changed func(string) bool) (*remotegpuv1.GPURequest, error) {
	if !f.set(changed) {
		return before, nil
	}
	request := &remotegpuv1.GPURequest{}
	if before != nil {
		request = proto.CloneOf(before)
	}
	if changed("gpus") {
		if err := parseGPUs(request, f.gpus); err != nil {
			return nil, err
		}
	}
	if changed("gpu-mode") {
		mode := remotegpuv1.GPUMode_value["GPU_MODE_"+strings.ToUpper(f.mode)]
		if mode == 0 {
			return nil, usagef("use exclusive, shared, mig or vgpu", "GPU mode %q is none of these", f.mode)
		}
		if remotegpuv1.GPUMode(mode) != request.GetMode() {
			request.MemoryBytes, request.ComputePercent, request.Profile, request.AllowUnenforced = 0, 0, "", false
		}
		request.Mode = remotegpuv1.GPUMode(mode)
	}
	if changed("gpu-memory") {
		bytes, err := parseSize("--gpu-memory", f.memory)
		if err != nil {
			return nil, err
		}
		request.MemoryBytes = uint64(bytes)
	}
	if changed("gpu-compute") {
		request.ComputePercent = f.compute
	}
	if changed("gpu-profile") {
		request.Profile = f.profile
	}
	if changed("gpu-allow-unenforced") {
		request.AllowUnenforced = f.unenforced
	}
	if changed("gpu-capabilities") {
		found, err := parseEnums[remotegpuv1.GPUCapability](f.capabilities, "capability", "GPU_CAPABILITY_", remotegpuv1.GPUCapability_value)
		if err != nil {
			return nil, err
		}
		request.Capabilities = found
	}
	return request, nil
}

// parseGPUs reads a number, or key=value pairs quoted as in CSV.
func parseGPUs(request *remotegpuv1.GPURequest, text string) error {
	request.Count, request.Uuids, request.Models = 0, nil, nil
	words, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		words = nil
	}
	for i, word := range words {
		key, value, said := strings.Cut(word, "=")
		if !said && i == 0 {
			key, value = "count", word
		}
		switch {
		case key == "count":
			count, err := strconv.ParseInt(value, 10, 32)
			if err != nil || count < 1 {
				hint := "write a number from 1 on"
				if value == "all" {
					hint += "; remotegpu gpu ls tells how many there are"
				}
				return usagef(hint, "%q is no number of GPUs", value)
			}
			request.Count = int32(count)
		case key == "model" && value != "":
			request.Models = append(request.Models, value)
		case (key == "uuid" || key == "device") && value != "":
			request.Uuids = append(request.Uuids, value)
		default:
			return usagef("write --gpus 1, --gpus model=A100,count=2 or --gpus uuid=GPU-…", "GPUs %q: %q is not known", text, word)
		}
	}
	if len(words) == 0 {
		return usagef("write --gpus 1, --gpus model=A100,count=2 or --gpus uuid=GPU-…", "GPUs %q are none", text)
	}
	return nil
}

func (f *updateFlags) setGPUs(spec *remotegpuv1.EnvironmentSpec, e *remotegpuv1.Environment, changed func(string) bool, mask *updateMask) error {
	if !f.gpu.set(changed) && !f.noGPUs {
		return nil
	}
	if f.noGPUs && f.gpu.set(changed) {
		return usagef("leave one of them out", "--no-gpus and other flags of GPUs exclude each other")
	}
	if f.noGPUs {
		mask.set("spec.gpu")
		return nil
	}
	mask.merge("spec.gpu")
	var err error
	spec.Gpu, err = f.gpu.apply(e.GetSpec().GetGpu(), changed)
	return err
}

// gpuText says what an environment has of a GPU.
func gpuText(l *remotegpuv1.GPULease) string {
	text := l.GetGpu() + " " + state(l.GetMode(), "GPU_MODE_")
	switch l.GetMode() { //nolint:exhaustive // the others say enough
	case remotegpuv1.GPUMode_GPU_MODE_MIG:
		text += " " + l.GetProfile()
		if l.GetMigInstance() != "" {
			text += " " + l.GetMigInstance()
		}
	case remotegpuv1.GPUMode_GPU_MODE_VGPU:
		text += " " + size(int64(l.GetMemoryBytes()))
		if l.GetComputePercent() > 0 {
			text += " " + strconv.Itoa(int(l.GetComputePercent())) + "%"
		}
	}
	return text + ", enforced by " + state(l.GetEnforcement(), "GPU_ENFORCEMENT_")
}
