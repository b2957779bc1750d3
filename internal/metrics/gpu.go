package metrics

import (
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/runtime"
)

// Labels have the names of NVIDIA's DCGM exporter where it has one, so that
// series of both can be joined. Their values are those of GPUs and of
// environments that have one: nobody can make many of them.
const (
	labelUUID      = "UUID"
	labelInstance  = "GPU_I_ID"
	labelProfile   = "GPU_I_PROFILE"
	labelEnv       = "environment" // id
	labelName      = "name"
	labelProject   = "project"
	gpuPrefix      = "remotegpu_gpu_"
	environmentGPU = "remotegpu_environment_gpu_"
)

// gpuCollector shows GPUs and what environments do with theirs.
type gpuCollector struct {
	ask      func() (report, bool)
	dcgm     *dcgm // nil: they are not shown by those names
	hostname string

	up, lookedAt, driver, info, memory, health, drained, warnings, leases, xids, slowdown, shutdown, processes *prometheus.Desc

	lease, lost, used, limit, utilization, encoder, decoder, envProcesses *prometheus.Desc
}

func newGPUCollector(cfg *Config, ask func() (report, bool)) *gpuCollector {
	of := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(gpuPrefix+name, help, labels, nil)
	}
	env := func(name, help string, labels ...string) *prometheus.Desc {
		all := append([]string{labelEnv, labelName, labelProject, labelUUID, labelInstance, labelProfile}, labels...)
		return prometheus.NewDesc(environmentGPU+name, help, all, nil)
	}
	c := &gpuCollector{
		ask: ask, hostname: cfg.Hostname,
		up:       of("up", "1 while the GPU software of the host answers. At 0 GPUs are shown as they were last known."),
		lookedAt: of("inventory_timestamp_seconds", "When the GPUs of the host were last looked for."),
		driver:   of("driver_info", "1, with the versions of NVIDIA's driver, of the newest CUDA that it supports and of NVML.", "driver", "cuda", "nvml"),
		info:     of("info", "1, for each GPU that the host has or somebody has a lease of.", labelUUID, "gpu", "pci_bus_id", "vendor", "model"),
		memory:   of("memory_bytes", "Memory of the GPU.", labelUUID),
		health: of("health", "1 for the state that a GPU is in: ok, hot (given to nobody until it is cool), unhealthy (until an administrator says otherwise), gone.",
			labelUUID, "state"),
		drained:   of("drained", "1 while an administrator keeps the GPU from new environments.", labelUUID),
		warnings:  of("warnings", "What is wrong with the GPU though it works, such as heat; remotegpu gpu get says what.", labelUUID),
		leases:    of("leases", "Leases of the GPU that are held.", labelUUID, "mode"),
		xids:      of("xid_errors_total", "Errors of the GPU by NVIDIA's number (XID) since the daemon was started.", labelUUID, "xid"),
		slowdown:  of("slowdown_temperature_celsius", "Temperature from which the GPU's hardware slows it down.", labelUUID),
		shutdown:  of("shutdown_temperature_celsius", "Temperature at which the GPU switches itself off.", labelUUID),
		processes: of("processes", "Processes that use the GPU, of environments or not.", labelUUID),

		lease:       env("lease_info", "1, for each GPU that an environment has, also while it is stopped.", "mode", "enforcement"),
		lost:        env("lost", "1 while the environment runs without the GPU that it has: it has to be restarted."),
		used:        env("memory_used_bytes", "Memory of the GPU that the environment uses. Absent where an MPS server hides it."),
		limit:       env("memory_limit_bytes", "Memory that the environment has: of the GPU, of the instance, or its share."),
		utilization: env("utilization_ratio", "Share of the time in which a kernel ran: of anybody who has the GPU alone, else of the environment's processes."),
		encoder:     env("encoder_utilization_ratio", "Share of the time in which encoders worked, as utilization_ratio."),
		decoder:     env("decoder_utilization_ratio", "Share of the time in which decoders worked, as utilization_ratio."),

		envProcesses: env("processes", "Processes of the environment that use the GPU."),
	}
	if cfg.DCGM {
		c.dcgm = newDCGM()
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *gpuCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		c.up, c.lookedAt, c.driver, c.info, c.memory, c.health, c.drained, c.warnings, c.leases, c.xids, c.slowdown, c.shutdown, c.processes,
		c.lease, c.lost, c.used, c.limit, c.utilization, c.encoder, c.decoder, c.envProcesses,
	} {
		ch <- desc
	}
	if c.dcgm != nil {
		c.dcgm.describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (c *gpuCollector) Collect(ch chan<- prometheus.Metric) {
	found, fresh := c.ask()
	s := sink{ch}
	measured := fresh && found.Err == nil
	s.gauge(c.up, number(measured))
	if !found.At.IsZero() {
		s.gauge(c.lookedAt, float64(found.At.UnixMilli())/1000)
	}
	if found.Driver != "" {
		s.gauge(c.driver, 1, found.Driver, found.CUDA, found.NVML)
	}
	for i := range found.GPUs {
		g := &found.GPUs[i]
		c.collectGPU(s, g, found.Errors[g.UUID])
		if measured && g.Usage != nil {
			s.gauge(c.processes, float64(len(g.Usage.Processes)), g.UUID)
		}
		if c.dcgm != nil && g.Vendor == gpu.NVIDIA {
			c.dcgm.collect(s, g, found.Errors[g.UUID], c.hostname, measured)
		}
	}
	for i := range found.Holders {
		c.collectHolder(s, &found.Holders[i], found.GPUs, measured)
	}
}

// collectGPU shows what is known of a GPU whether it can be measured or not.
func (c *gpuCollector) collectGPU(s sink, g *runtime.GPU, errs runtime.GPUErrors) {
	index := ""
	if g.Index >= 0 {
		index = strconv.Itoa(g.Index)
	}
	s.gauge(c.info, 1, g.UUID, index, busID(g.PCI), string(g.Vendor), g.Model)
	if g.MemoryBytes > 0 {
		s.gauge(c.memory, float64(g.MemoryBytes), g.UUID)
	}
	is := state(g)
	for _, each := range []string{"ok", "hot", "unhealthy", "gone"} {
		s.gauge(c.health, number(each == is), g.UUID, each)
	}
	s.gauge(c.drained, number(g.Mark.Drained), g.UUID)
	s.gauge(c.warnings, float64(len(g.Warnings)), g.UUID)
	held := make(map[gpu.Mode]int)
	for i := range g.Leases {
		held[g.Leases[i].Mode]++
	}
	for _, mode := range []gpu.Mode{gpu.Exclusive, gpu.Shared, gpu.MIGMode, gpu.VGPU} {
		s.gauge(c.leases, float64(held[mode]), g.UUID, string(mode))
	}
	for xid, count := range errs.XIDs {
		label := "other"
		if xid != 0 {
			label = strconv.Itoa(xid)
		}
		s.counter(c.xids, float64(count), g.UUID, label)
	}
	if g.Vitals.SlowdownAt > 0 {
		s.gauge(c.slowdown, float64(g.Vitals.SlowdownAt), g.UUID)
	}
	if g.Vitals.ShutdownAt > 0 {
		s.gauge(c.shutdown, float64(g.Vitals.ShutdownAt), g.UUID)
	}
}

// state is what the API calls a GPU's health.
func state(g *runtime.GPU) string {
	switch {
	case g.Gone:
		return "gone"
	case g.Mark.Health.Unhealthy || g.Health.Unhealthy && !g.Health.Passing:
		return "unhealthy"
	case g.Health.Unhealthy:
		return "hot"
	}
	return "ok"
}

// collectHolder shows what an environment has of a GPU, and what it does with it.
func (c *gpuCollector) collectHolder(s sink, h *runtime.GPUHolder, gpus []runtime.GPU, measured bool) {
	l := &h.Lease
	labels := []string{l.EnvID, l.EnvName, h.Project, l.GPU, instanceID(l.MIG, l.GPU, gpus), l.Profile}
	s.gauge(c.lease, 1, append(labels, string(l.Mode), string(l.Enforcement))...)
	s.gauge(c.lost, number(h.Lost), labels...)
	if !measured || h.Stats == nil {
		return
	}
	if !h.Stats.MemoryUnknown {
		s.gauge(c.used, float64(h.Stats.MemoryBytes), labels...)
	}
	if h.Stats.MemoryLimitBytes > 0 {
		s.gauge(c.limit, float64(h.Stats.MemoryLimitBytes), labels...)
	}
	s.percent(c.utilization, h.Stats.UtilPercent, labels...)
	s.percent(c.encoder, h.Stats.EncoderPercent, labels...)
	s.percent(c.decoder, h.Stats.DecoderPercent, labels...)
	s.gauge(c.envProcesses, float64(h.Stats.Processes), labels...)
}

// instanceID is the driver's number of a MIG instance; "" where it is not known.
func instanceID(mig, uuid string, gpus []runtime.GPU) string {
	for i := range gpus {
		for _, instance := range gpus[i].MIG.Instances {
			if mig != "" && gpus[i].UUID == uuid && instance.UUID == mig {
				return strconv.Itoa(instance.GPUInstance)
			}
		}
	}
	return ""
}

// busID is a PCI address as NVML writes it: "00000000:07:00.0".
func busID(pci string) string {
	domain, rest, found := strings.Cut(pci, ":")
	if !found {
		return pci
	}
	return strings.ToUpper(strings.Repeat("0", max(0, 8-len(domain))) + domain + ":" + rest)
}

// sink takes measurements.
type sink struct{ ch chan<- prometheus.Metric }

func (s sink) gauge(desc *prometheus.Desc, value float64, labels ...string) {
	s.add(desc, prometheus.GaugeValue, value, labels)
}

func (s sink) counter(desc *prometheus.Desc, value float64, labels ...string) {
	s.add(desc, prometheus.CounterValue, value, labels)
}

// add passes a measurement on. Names may be as firmware has them.
func (s sink) add(desc *prometheus.Desc, kind prometheus.ValueType, value float64, labels []string) {
	clean := make([]string, len(labels))
	for i, label := range labels {
		clean[i] = strings.ToValidUTF8(label, "?")
	}
	metric, err := prometheus.NewConstMetric(desc, kind, value, clean...)
	if err != nil {
		metric = prometheus.NewInvalidMetric(desc, err)
	}
	s.ch <- metric
}

// percent is a ratio; one that is negative is not known.
func (s sink) percent(desc *prometheus.Desc, percent int, labels ...string) {
	if percent >= 0 {
		s.gauge(desc, float64(percent)/100, labels...)
	}
}

func number(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
