package cli

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) gpuCommand() *cobra.Command {
	cmd := group("gpu", "GPUs of the node", a.gpuList(), a.gpuGet(), a.gpuLeases(), a.gpuDrain(), a.gpuUndrain(), a.gpuMIG())
	cmd.Long = `GPUs of the node and who has them. A GPU is named by its UUID or the beginning
of it, its PCI address, or its index.`
	return cmd
}

func (a *app) gpuList() *cobra.Command {
	request := &remotegpuv1.ListGPUsRequest{}
	var q quiet
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List GPUs by PCI address", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			response, err := c.gpus.ListGPUs(cmd.Context(), request)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(response)
			}
			for _, note := range response.GetNotes() {
				a.say("%s", plain(note))
			}
			if q.on {
				return identifiers(a, response.GetGpus(), (*remotegpuv1.GPU).GetUuid)
			}
			return a.gpuTable(response.GetGpus())
		},
	}
	cmd.Flags().BoolVar(&request.Usage, "usage", false, "measure them too")
	q.register(a, cmd, "UUIDs")
	return cmd
}

func (a *app) gpuTable(gpus []*remotegpuv1.GPU) error {
	rows := make([][]string, 0, len(gpus))
	for _, g := range gpus {
		index := "-"
		if g.GetIndex() >= 0 {
			index = strconv.Itoa(int(g.GetIndex()))
		}
		rows = append(rows, []string{
			index, g.GetUuid(), dash(g.GetModel()), gpuMemory(g.GetMemoryBytes()), gpuMode(g), gpuState(g), gpuUsage(g.GetUsage()), dash(gpuHolders(g)),
		})
	}
	return a.table([]string{"INDEX", "UUID", "MODEL", "MEMORY", "MODE", "STATE", "USE", "ENVIRONMENTS"}, rows)
}

func gpuMemory(bytes uint64) string {
	if bytes == 0 {
		return "-"
	}
	return size(int64(bytes))
}

func gpuMode(g *remotegpuv1.GPU) string {
	if g.GetMode() == remotegpuv1.GPUMode_GPU_MODE_UNSPECIFIED {
		return "free"
	}
	return state(g.GetMode(), "GPU_MODE_")
}

// gpuState says whether a GPU is given.
func gpuState(g *remotegpuv1.GPU) string {
	word := state(g.GetHealth(), "GPU_HEALTH_")
	if g.GetDrained() {
		word = strings.TrimPrefix(word+", drained", "ok, ")
	}
	if g.GetMigPending() {
		word += ", needs reset"
	}
	return word
}

func gpuUsage(u *remotegpuv1.GPUUsage) string {
	if u == nil {
		return "-"
	}
	text := size(int64(u.GetMemoryUsedBytes()))
	if u.UtilPercent != nil {
		text = fmt.Sprintf("%d%% ", u.GetUtilPercent()) + text
	}
	return text
}

func gpuHolders(g *remotegpuv1.GPU) string {
	names := make([]string, 0, len(g.GetLeases()))
	for _, l := range g.GetLeases() {
		names = append(names, holder(l))
	}
	return strings.Join(names, ", ")
}

func (a *app) gpuGet() *cobra.Command {
	return &cobra.Command{
		Use: "get GPU", Short: "Show a GPU, who has it and what it does", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeGPUs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			response, err := c.gpus.GetGPU(cmd.Context(), &remotegpuv1.GetGPURequest{Gpu: args[0]})
			if err != nil {
				return err
			}
			return a.showGPU(response.GetGpu())
		},
	}
}

func (a *app) showGPU(g *remotegpuv1.GPU) error {
	if a.output == "json" {
		return a.json(g)
	}
	rows := [][]string{
		{"UUID", g.GetUuid()},
		{"Model", g.GetModel()},
		{"Memory", gpuMemory(g.GetMemoryBytes())},
		{"PCI", g.GetPci()},
		{"NUMA node", strconv.Itoa(int(g.GetNumaNode()))},
		{"Architecture", strings.TrimSpace(g.GetArchitecture() + " " + g.GetComputeCapability())},
		{"Render node", g.GetRenderNode()},
		{"Linked with", strings.Join(g.GetPeers(), ", ")},
		{"Virtualization", g.GetVirtualization()},
		{"Mode", gpuMode(g)},
		{"State", gpuState(g)},
		{"Drained", strings.TrimSpace(moment(g.GetDrainedAt()) + " " + g.GetDrainReason())},
		{"Unhealthy", strings.TrimSpace(moment(g.GetUnhealthySince()) + " " + g.GetHealthReason())},
	}
	for _, warning := range g.GetWarnings() {
		rows = append(rows, []string{"Warning", warning})
	}
	if g.GetEcc() {
		rows = append(rows, []string{"ECC", onOff(true)})
	}
	if g.GetMigCapable() {
		rows = append(rows, []string{"MIG", migText(g)})
	}
	for _, p := range g.GetProfiles() {
		starts := make([]string, 0, len(p.GetPlacements()))
		for _, at := range p.GetPlacements() {
			starts = append(starts, strconv.Itoa(int(at.GetStart())))
		}
		rows = append(rows, []string{"Profile", fmt.Sprintf("%s, %s, at %s", p.GetName(), gpuMemory(p.GetMemoryBytes()), strings.Join(starts, " "))})
	}
	for _, i := range g.GetInstances() {
		text := fmt.Sprintf("%s %s at %d", i.GetUuid(), i.GetProfile(), i.GetPlacement().GetStart())
		if i.GetKept() {
			text += ", kept"
		}
		rows = append(rows, []string{"Instance", text})
	}
	for _, p := range g.GetPlanned() {
		rows = append(rows, []string{"Instance", plannedText(p)})
	}
	for _, l := range g.GetLeases() {
		rows = append(rows, []string{"Environment", holder(l) + ": " + strings.TrimPrefix(gpuText(l), g.GetUuid()+" ")})
	}
	return a.facts(append(rows, usageRows(g.GetUsage())...))
}

// migText says whether MIG is on, and whether it is to be.
func migText(g *remotegpuv1.GPU) string {
	text := onOff(g.GetMigEnabled())
	if g.GetMigWanted() && !g.GetMigEnabled() {
		text += ", to be on"
	}
	if g.GetMigProblem() != "" {
		text += ": " + g.GetMigProblem()
	}
	return text
}

// plannedText says what is to become of an instance.
func plannedText(p *remotegpuv1.PlannedMIGInstance) string {
	text := fmt.Sprintf("%s at %d", p.GetProfile(), p.GetPlacement().GetStart())
	switch {
	case !p.GetRemove():
		text += ", missing, to be made again"
	case p.GetEnvironment() != "":
		text += ", to be removed: environment " + cmp.Or(p.GetEnvironmentName(), p.GetEnvironment()) + " had it"
	default:
		text += ", to be removed"
	}
	if p.GetProblem() != "" {
		text += ": " + p.GetProblem()
	}
	return text
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func usageRows(u *remotegpuv1.GPUUsage) [][]string {
	if u == nil {
		return nil
	}
	rows := [][]string{{"Use", gpuUsage(u)}}
	if u.TemperatureCelsius != nil {
		rows = append(rows, []string{"Temperature", fmt.Sprintf("%d °C", u.GetTemperatureCelsius())})
	}
	if u.PowerMilliwatts != nil {
		rows = append(rows, []string{"Power", fmt.Sprintf("%d W", u.GetPowerMilliwatts()/1000)})
	}
	for _, count := range []struct {
		name  string
		value *int64
	}{{"Memory errors", u.EccUncorrected}, {"Memory errors ever", u.EccUncorrectedEver}} {
		if count.value != nil {
			rows = append(rows, []string{count.name, fmt.Sprintf("%d that were not corrected", *count.value)})
		}
	}
	for _, p := range u.GetProcesses() {
		rows = append(rows, []string{"Process", strings.Join(strings.Fields(fmt.Sprintf(
			"%d %s %s %s", p.GetPid(), gpuMemory(p.GetMemoryBytes()), p.GetMigInstance(), cmp.Or(p.GetEnvironmentName(), p.GetEnvironment()),
		)), " ")})
	}
	return rows
}

func (a *app) gpuDrain() *cobra.Command {
	request := &remotegpuv1.DrainGPURequest{}
	cmd := &cobra.Command{
		Use: "drain GPU", Short: "Keep a GPU from new environments", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeGPUs,
		Long: `drain keeps a GPU from new environments. Those that have it keep it, also over a
restart. remotegpud keeps a drained GPU open no longer than it takes to look at
it, so that it can be reset (nvidia-smi -r) once nothing else uses it; its events
are not seen until undrain.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			request.Gpu = args[0]
			response, err := c.gpus.DrainGPU(cmd.Context(), request)
			if err != nil {
				return err
			}
			return a.didGPU(response.GetGpu(), "drained")
		},
	}
	cmd.Flags().StringVar(&request.Reason, "reason", "", "why, for those who are refused it")
	return cmd
}

func (a *app) gpuUndrain() *cobra.Command {
	request := &remotegpuv1.UndrainGPURequest{}
	cmd := &cobra.Command{
		Use: "undrain GPU", Short: "Let a GPU be given again", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeGPUs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			request.Gpu = args[0]
			response, err := c.gpus.UndrainGPU(cmd.Context(), request)
			if err != nil {
				return err
			}
			return a.didGPU(response.GetGpu(), gpuState(response.GetGpu()))
		},
	}
	cmd.Flags().BoolVar(&request.ResetHealth, "reset-health", false, "forget that it was unhealthy: somebody has looked at it")
	return cmd
}

func (a *app) didGPU(g *remotegpuv1.GPU, what string) error {
	if a.output == "json" {
		return a.json(g)
	}
	return a.printf("%s: %s\n", plain(g.GetUuid()), what)
}

func (a *app) gpuMIG() *cobra.Command {
	cmd := group("mig", "Instances of partitioned GPUs", a.migCreate(), a.migDelete(), a.migMode())
	cmd.Long = `Instances are made for environments that ask for a profile (env create
--gpu-mode mig --gpu-profile PROFILE), and go with them. Those that are made here
stay, and so does the mode: a host that has lost them with a reboot makes them
again. An instance that is made again has another UUID.`
	return cmd
}

func (a *app) migCreate() *cobra.Command {
	var start int32
	cmd := &cobra.Command{
		Use: "create GPU PROFILE", Short: "Make an instance that stays", Args: cobra.ExactArgs(2), ValidArgsFunction: a.completeGPUs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			request := &remotegpuv1.CreateMIGInstanceRequest{Gpu: args[0], Profile: args[1]}
			if cmd.Flags().Changed("start") {
				request.Start = &start
			}
			response, err := c.gpus.CreateMIGInstance(cmd.Context(), request)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(response.GetInstance())
			}
			return a.printf("%s\n", plain(response.GetInstance().GetUuid()))
		},
	}
	cmd.Flags().Int32Var(&start, "start", 0, "first memory slice (default: where the largest hole is left)")
	return cmd
}

func (a *app) migDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete INSTANCE...", Aliases: []string{"rm"}, Short: "Remove instances that no environment has", Args: cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeMIGs,
		Long: `delete removes instances, by their UUIDs, that no environment has. One that is to
be made again and is not there is named GPU:PLACE, the UUID of its GPU and its
first memory slice; it is not made again then.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), args, func(uuid string) error {
				response, err := c.gpus.DeleteMIGInstance(cmd.Context(), &remotegpuv1.DeleteMIGInstanceRequest{Instance: uuid})
				if err != nil {
					return err
				}
				if a.output == "json" {
					return a.jsonLine(response)
				}
				return a.printf("%s: removed\n", plain(uuid))
			})
		},
	}
}

func (a *app) migMode() *cobra.Command {
	return &cobra.Command{
		Use: "mode GPU on|off", Short: "Turn partitioning of an idle GPU on or off", Args: cobra.ExactArgs(2),
		ValidArgsFunction: inTurn(a.completeGPUs, cobra.FixedCompletions([]cobra.Completion{"on", "off"}, cobra.ShellCompDirectiveNoFileComp)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[1] != "on" && args[1] != "off" {
				return usagef("use on or off", "%q is neither", args[1])
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			response, err := c.gpus.SetMIGMode(cmd.Context(), &remotegpuv1.SetMIGModeRequest{Gpu: args[0], Enabled: args[1] == "on"})
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(response)
			}
			what := "MIG is " + onOff(response.GetGpu().GetMigEnabled())
			if response.GetResetNeeded() {
				what += "; it changes with a reset, which remotegpud is not in the way of: nvidia-smi -r -i " + response.GetGpu().GetUuid()
			}
			return a.didGPU(response.GetGpu(), what)
		},
	}
}

// completeGPUs offers the GPUs of the node.
func (a *app) completeGPUs(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.offer(cmd, args, prefix, func(ctx context.Context, c *clients) ([]cobra.Completion, error) {
		response, err := c.gpus.ListGPUs(ctx, &remotegpuv1.ListGPUsRequest{})
		var found []cobra.Completion
		for _, g := range response.GetGpus() {
			found = append(found, cobra.CompletionWithDesc(g.GetUuid(), plain(g.GetModel())+" "+gpuState(g)))
		}
		return found, err
	})
}

// completeMIGs offers the instances that no environment has, those that are to be
// made again among them.
func (a *app) completeMIGs(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.offer(cmd, args, prefix, func(ctx context.Context, c *clients) ([]cobra.Completion, error) {
		response, err := c.gpus.ListGPUs(ctx, &remotegpuv1.ListGPUsRequest{})
		var found []cobra.Completion
		for _, g := range response.GetGpus() {
			held := make(map[string]bool)
			for _, l := range g.GetLeases() {
				held[l.GetMigInstance()] = true
			}
			for _, i := range g.GetInstances() {
				if !held[i.GetUuid()] {
					found = append(found, cobra.CompletionWithDesc(i.GetUuid(), plain(i.GetProfile())+" of "+g.GetUuid()))
				}
			}
			for _, p := range g.GetPlanned() {
				if !p.GetRemove() && p.GetEnvironment() == "" {
					found = append(found, cobra.CompletionWithDesc(fmt.Sprintf("%s:%d", g.GetUuid(), p.GetPlacement().GetStart()), plain(plannedText(p))))
				}
			}
		}
		return found, err
	})
}
