package config

// Metrics is what the API's listeners show to Prometheus at /metrics.
type Metrics struct {
	DCGM bool `toml:"dcgm" comment:"Show measurements of NVIDIA's GPUs by the names of its DCGM exporter. Turn it off where that exporter runs for the same host: sums would count GPUs twice."`
}
