package columns

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/remotegpu/remotegpu/internal/config"
)

// writeNodeConfig writes the configuration of the node: the file named on the
// command line, or the defaults, with what has to be the benchmark's own. It
// returns the path of the file and of the API's socket.
func (r *remoteGPU) writeNodeConfig(dir string) (file, api string, err error) {
	settings := config.Default()
	if r.config.RemotegpudConfig != "" {
		if settings, err = config.Load(r.config.RemotegpudConfig, false); err != nil {
			return "", "", fmt.Errorf("load configuration of remotegpud: %w", err)
		}
	}
	if api, err = socket(RemoteGPU); err != nil {
		return "", "", err
	}
	settings.Node.StateDir = filepath.Join(dir, "state")
	settings.Node.RunDir = "/run/remotegpu" // the sandbox's own tmpfs
	settings.API.Socket = api
	settings.API.Listen = "" // nothing but the socket is measured
	settings.Gateway.Listen = ""
	settings.Containerd.Address = r.engine.address
	settings.Containerd.Namespace = r.config.Name
	settings.Containerd.Cgroup = "/" + r.config.Name + "/" + RemoteGPU // it goes with the run
	settings.BuildKit.Address = ""
	text, err := settings.Marshal()
	if err != nil {
		return "", "", err
	}
	file = filepath.Join(dir, "remotegpud.toml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return "", "", fmt.Errorf("write configuration of remotegpud: %w", err)
	}
	return file, api, nil
}
