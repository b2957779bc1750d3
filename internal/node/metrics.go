package node

import (
	"context"
	"net/http"
	"os"

	"github.com/remotegpu/remotegpu/internal/metrics"
)

// metricsPath is where Prometheus finds what the node does.
const metricsPath = "/metrics"

// metrics answers scrapes until ctx ends.
func (n *Node) metrics(ctx context.Context) (http.Handler, error) {
	cfg := metrics.Config{DCGM: n.cfg.Metrics.DCGM, Hostname: n.cfg.Node.Name, Log: n.log}
	if name, err := os.Hostname(); err == nil {
		cfg.Hostname = name // the node may be called otherwise
	}
	if n.cfg.GPU.Enabled {
		cfg.GPUs = n.manager
	}
	return metrics.Handler(ctx, cfg)
}

// withMetrics serves metrics beside the API.
func withMetrics(api, shown http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", api)
	mux.Handle("GET "+metricsPath, shown)
	return mux
}
