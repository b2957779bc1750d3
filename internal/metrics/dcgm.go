package metrics

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/runtime"
)

// dcgm are measurements of GPUs by the names, units and labels of NVIDIA's DCGM
// exporter (dcgm-exporter, etc/default-counters.csv): its dashboards and rules
// work with them.
type dcgm struct {
	util, copies, encoder, decoder, used, free, reserved, temperature, power, xid *prometheus.Desc

	corrected, uncorrected, correctedEver, uncorrectedEver *prometheus.Desc
}

func newDCGM() *dcgm {
	of := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("DCGM_FI_DEV_"+name, help, []string{
			"gpu", labelUUID, "pci_bus_id", "device", "modelName", "Hostname", labelProfile, labelInstance,
		}, nil)
	}
	return &dcgm{
		util:            of("GPU_UTIL", "GPU utilization (in %)."),
		copies:          of("MEM_COPY_UTIL", "Memory utilization (in %)."),
		encoder:         of("ENC_UTIL", "Encoder utilization (in %)."),
		decoder:         of("DEC_UTIL", "Decoder utilization (in %)."),
		used:            of("FB_USED", "Framebuffer memory used (in MiB)."),
		free:            of("FB_FREE", "Framebuffer memory free (in MiB)."),
		reserved:        of("FB_RESERVED", "Framebuffer memory reserved (in MiB)."),
		temperature:     of("GPU_TEMP", "GPU temperature (in C)."),
		power:           of("POWER_USAGE", "Power draw (in W)."),
		xid:             of("XID_ERRORS", "Value of the last XID error encountered."),
		corrected:       of("ECC_SBE_VOL_TOTAL", "Total number of single-bit volatile ECC errors."),
		uncorrected:     of("ECC_DBE_VOL_TOTAL", "Total number of double-bit volatile ECC errors."),
		correctedEver:   of("ECC_SBE_AGG_TOTAL", "Total number of single-bit persistent ECC errors."),
		uncorrectedEver: of("ECC_DBE_AGG_TOTAL", "Total number of double-bit persistent ECC errors."),
	}
}

func (d *dcgm) describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		d.util, d.copies, d.encoder, d.decoder, d.used, d.free, d.reserved, d.temperature, d.power, d.xid,
		d.corrected, d.uncorrected, d.correctedEver, d.uncorrectedEver,
	} {
		ch <- desc
	}
}

func (d *dcgm) collect(s sink, g *runtime.GPU, errs runtime.GPUErrors, hostname string, measured bool) {
	device := ""
	if g.Minor >= 0 {
		device = "nvidia" + strconv.Itoa(g.Minor)
	}
	labels := func(profile, instance string) []string {
		return []string{strconv.Itoa(g.Index), g.UUID, busID(g.PCI), device, g.Model, hostname, profile, instance}
	}
	whole := labels("", "")
	s.gauge(d.xid, float64(errs.Last), whole...)
	u := g.Usage
	if !measured || u == nil {
		return
	}
	for _, m := range []struct {
		desc  *prometheus.Desc
		value int
	}{{d.util, u.UtilPercent}, {d.copies, u.CopyPercent}, {d.encoder, u.EncoderPercent}, {d.decoder, u.DecoderPercent}, {d.temperature, u.Temperature}} {
		if m.value >= 0 {
			s.gauge(m.desc, float64(m.value), whole...)
		}
	}
	if u.PowerMilliwatts >= 0 {
		s.gauge(d.power, float64(u.PowerMilliwatts)/1000, whole...)
	}
	for _, m := range []struct {
		desc  *prometheus.Desc
		value int64
	}{{d.corrected, u.ECCCorrected}, {d.uncorrected, u.ECCUncorrected}, {d.correctedEver, u.ECCCorrectedEver}, {d.uncorrectedEver, u.ECCUncorrectedEver}} {
		if m.value >= 0 {
			s.counter(m.desc, float64(m.value), whole...)
		}
	}
	s.gauge(d.used, mebibytes(u.MemoryUsed), whole...)
	s.gauge(d.free, mebibytes(u.MemoryFree), whole...)
	if u.MemoryReserved > 0 {
		s.gauge(d.reserved, mebibytes(u.MemoryReserved), whole...)
	}
	shown := map[int]bool{} // several compute instances have the memory of one
	for _, used := range u.Instances {
		for _, instance := range g.MIG.Instances {
			if instance.UUID == used.UUID && !shown[instance.GPUInstance] {
				shown[instance.GPUInstance] = true
				d.instance(s, &used, labels(instance.Profile, strconv.Itoa(instance.GPUInstance)))
			}
		}
	}
}

// instance shows the memory of a MIG instance: nothing else is told of one.
func (d *dcgm) instance(s sink, used *gpu.InstanceUsage, labels []string) {
	s.gauge(d.used, mebibytes(used.MemoryUsed), labels...)
	s.gauge(d.free, mebibytes(used.MemoryFree), labels...)
}

func mebibytes(bytes uint64) float64 { return float64(bytes) / (1 << 20) }
