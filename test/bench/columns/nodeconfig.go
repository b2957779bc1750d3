package columns

import (
	"bytes"
	"fmt"
	"os"
	"text/template"
)

// nodeNamespace is the containerd namespace of the node.
const nodeNamespace = "remotegpu"

// NodeSettings is what the benchmark decides about the node it starts.
type NodeSettings struct {
	Dir        string // for everything that the node keeps
	Socket     string // of its API
	Containerd string // socket
	Namespace  string // of containerd
}

// defaultNodeConfig is used unless a template is given on the command line.
const defaultNodeConfig = `state_dir = "{{.Dir}}/state"
run_dir = "{{.Dir}}/run"

[api]
socket = "{{.Socket}}"

[containerd]
address = "{{.Containerd}}"
namespace = "{{.Namespace}}"
`

// nodeConfig fills in the node's configuration, which is a template of
// NodeSettings.
func (r *remoteGPU) nodeConfig(settings *NodeSettings) ([]byte, error) {
	text := defaultNodeConfig
	if r.config.RemotegpudConfig != "" {
		content, err := os.ReadFile(r.config.RemotegpudConfig)
		if err != nil {
			return nil, fmt.Errorf("read configuration of remotegpud: %w", err)
		}
		text = string(content)
	}
	parsed, err := template.New("remotegpud.toml").Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, fmt.Errorf("parse configuration of remotegpud: %w", err)
	}
	var out bytes.Buffer
	if err := parsed.Execute(&out, settings); err != nil {
		return nil, fmt.Errorf("fill in configuration of remotegpud: %w", err)
	}
	return out.Bytes(), nil
}
