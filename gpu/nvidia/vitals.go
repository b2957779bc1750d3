package nvidia

import (
	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/remotegpu/remotegpu/gpu"
)

// vitals are what a GPU tells of heat and memory.
func (s *session) vitals(handle nvml.Device, c *check) gpu.Vitals {
	v := gpu.Vitals{
		Temperature: max(0, s.temperature(handle)),
		SlowdownAt:  s.threshold(handle, nvml.TEMPERATURE_THRESHOLD_SLOWDOWN, c),
		ShutdownAt:  s.threshold(handle, nvml.TEMPERATURE_THRESHOLD_SHUTDOWN, c),
		Throttled:   s.throttled(handle, c),
	}
	// From Ada on a GPU tells how far it is from being slowed down instead.
	if v.SlowdownAt == 0 && v.Temperature > 0 && s.has("nvmlDeviceGetMarginTemperature") {
		if margin, ret := handle.GetMarginTemperature(); c.ok(ret) {
			v.SlowdownAt = max(1, v.Temperature+int(margin.MarginTemperature))
		}
	}
	if s.has("nvmlDeviceGetTotalEccErrors") {
		if count, ret := handle.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.AGGREGATE_ECC); c.ok(ret) {
			v.UncorrectedErrors = &count
		}
	}
	if s.has("nvmlDeviceGetRemappedRows") {
		_, _, pending, _, ret := handle.GetRemappedRows()
		v.RemapPending = c.ok(ret) && pending
	}
	if s.has("nvmlDeviceGetRetiredPagesPendingStatus") {
		pending, ret := handle.GetRetiredPagesPendingStatus()
		v.RetirePending = c.ok(ret) && pending == nvml.FEATURE_ENABLED
	}
	return v
}

// threshold is in degrees, 0 where it is not told.
func (s *session) threshold(handle nvml.Device, kind nvml.TemperatureThresholds, c *check) int {
	if !s.has("nvmlDeviceGetTemperatureThreshold") {
		return 0
	}
	degrees, ret := handle.GetTemperatureThreshold(kind)
	if !c.ok(ret) {
		return 0
	}
	return int(degrees)
}

// throttled says whether the hardware slows the GPU down for its heat. That the
// driver does is how a GPU under load keeps its temperature.
func (s *session) throttled(handle nvml.Device, c *check) bool {
	var reasons uint64
	var ret nvml.Return
	switch {
	case s.has("nvmlDeviceGetCurrentClocksEventReasons"):
		reasons, ret = handle.GetCurrentClocksEventReasons()
	case s.has("nvmlDeviceGetCurrentClocksThrottleReasons"): // drivers before R535
		reasons, ret = handle.GetCurrentClocksThrottleReasons()
	default:
		return false
	}
	return c.ok(ret) && reasons&nvml.ClocksThrottleReasonHwThermalSlowdown != 0
}
