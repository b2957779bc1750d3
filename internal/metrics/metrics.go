// Package metrics shows what the node does to Prometheus, in its text format.
// Each part of the node has a collector here; what one cannot find out it leaves
// out, and no scrape waits for it longer than a moment.
package metrics

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	goruntime "runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/remotegpu/remotegpu/internal/version"
)

const (
	// DefaultPatience leaves time for the rest: Prometheus gives up after ten
	// seconds by default.
	DefaultPatience = 4 * time.Second
	// scrapes is how many are answered at a time; more are refused.
	scrapes = 8
)

// Config is what is shown.
type Config struct {
	// GPUs tells of GPUs. nil: the node does not look for any.
	GPUs GPUs
	// DCGM has measurements of GPUs shown by the names of NVIDIA's DCGM exporter,
	// which a host that runs that exporter has already.
	DCGM     bool
	Hostname string // of the host, as that exporter tells it
	// Patience is how long a scrape waits for what a driver says. 0: DefaultPatience.
	Patience time.Duration
	Log      *slog.Logger
}

// Handler answers scrapes. Questions that outlast a scrape end with ctx.
func Handler(ctx context.Context, cfg Config) (http.Handler, error) {
	registry := prometheus.NewRegistry()
	parts := []prometheus.Collector{
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo(),
	}
	if cfg.GPUs != nil {
		reports := newReports(cfg.GPUs.ReportGPUs, cfg.Patience)
		parts = append(parts, newGPUCollector(&cfg, func() (report, bool) { return reports.get(ctx) }))
	}
	for _, part := range parts {
		if err := registry.Register(part); err != nil {
			return nil, fmt.Errorf("register a collector of metrics: %w", err)
		}
	}
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelWarn), ErrorHandling: promhttp.ContinueOnError,
		MaxRequestsInFlight: scrapes,
	}), nil
}

// buildInfo says which program runs.
func buildInfo() prometheus.Collector {
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "remotegpu_build_info", Help: "1, with the version of the daemon.",
		ConstLabels: prometheus.Labels{"version": version.Version, "goversion": goruntime.Version()},
	})
	info.Set(1)
	return info
}
