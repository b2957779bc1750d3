package vm_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	running = "ENVIRONMENT_STATE_RUNNING"
	stopped = "ENVIRONMENT_STATE_STOPPED"
	failed  = "ENVIRONMENT_STATE_ERROR"
)

const config = `version = 1
[node]
name = "node1"
[gateway]
listen = "127.0.0.1:7443"
[network]
upstreams = ["192.0.2.53"]
`

// The units, as docs/operations.md describes them.
const nodeUnit = `[Unit]
Description=remotegpu node
Wants=containerd.service
After=network.target containerd.service

[Service]
ExecStart=/usr/local/bin/remotegpud
KillMode=process
Restart=on-failure
RestartSec=1
RestartPreventExitStatus=78

[Install]
WantedBy=multi-user.target
`

const environmentsUnit = `[Unit]
Description=environments of remotegpu
After=network.target containerd.service
Before=remotegpud.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/usr/local/bin/remotegpud stop-environments
TimeoutStopSec=5min

[Install]
WantedBy=multi-user.target
`

// install puts the programs, the image and the units into the machine and
// starts the node.
func (m *Machine) install(tb testing.TB) {
	tb.Helper()
	m.Sh(tb, "ctr -n remotegpu images import /payload/image.tar")
	// Copies: programs are replaced while they run when a node is upgraded.
	m.Sh(tb, "cp /payload/repository/bin/* /usr/local/bin/")
	for path, text := range map[string]string{
		"/etc/remotegpu/remotegpud.toml": config, "/etc/systemd/system/remotegpud.service": nodeUnit,
		"/etc/systemd/system/remotegpu-environments.service": environmentsUnit,
	} {
		m.Sh(tb, fmt.Sprintf("mkdir -p %s; printf %%s %s > %s", filepath.Dir(path), quote([]string{text}), path))
	}
	m.Sh(tb, "systemctl daemon-reload; systemctl enable --now remotegpu-environments remotegpud")
	m.serves(tb)
}

// serves waits until the node answers.
func (m *Machine) serves(tb testing.TB) {
	tb.Helper()
	eventually(tb, "the node to serve", func() bool {
		_, code, err := m.try("remotegpu node info")
		return err == nil && code == 0
	})
}

// Environment is what the tests read of one.
type Environment struct {
	ID           string `json:"id"`
	Name         string `json:"name"`
	State        string `json:"state"`
	Address      string `json:"address"`
	Operation    string `json:"operation"`
	RestartCount int    `json:"restartCount"`
	Exit         *struct {
		OOM bool `json:"oomKilled"`
	} `json:"exit"`
	Problem *struct {
		Reason string `json:"reason"`
	} `json:"problem"`
	Ports []struct {
		External int `json:"externalPort"`
	} `json:"portMappings"`
}

// Create makes an environment with a port and waits until it runs.
func (m *Machine) Create(tb testing.TB, name string, options []string, command ...string) Environment {
	tb.Helper()
	m.CLI(tb, slices.Concat([]string{"env", "create", name, "--image", "remotegpu/test"}, options, []string{"--"}, command)...)
	return m.Get(tb, name)
}

// Get reads an environment.
func (m *Machine) Get(tb testing.TB, name string) Environment {
	tb.Helper()
	var env Environment
	m.Read(tb, &env, "env", "get", name)
	return env
}

// List reads all environments.
func (m *Machine) List(tb testing.TB) []Environment {
	tb.Helper()
	var list struct {
		Environments []Environment `json:"environments"`
	}
	m.Read(tb, &list, "env", "ls")
	return list.Environments
}

// Exec runs testprog in an environment.
func (m *Machine) Exec(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	return m.CLI(tb, append([]string{"env", "exec", "--stdin=false", name, "--", "testprog"}, args...)...)
}

// Events are the kinds of what happened to an environment.
func (m *Machine) Events(tb testing.TB, name string) (kinds []string) {
	tb.Helper()
	var list struct {
		Events []struct {
			Kind string `json:"kind"`
		} `json:"events"`
	}
	m.Read(tb, &list, "env", "events", name)
	for _, event := range list.Events {
		kinds = append(kinds, event.Kind)
	}
	return kinds
}

// Answers says whether the first published port of an environment is answered
// by what runs in it.
func (m *Machine) Answers(env Environment, name string) bool {
	out, code, err := m.try(fmt.Sprintf("timeout 20 bash -c 'head -n 1 < /dev/tcp/127.0.0.1/%d'", env.Ports[0].External))
	return err == nil && code == 0 && strings.HasPrefix(out, name)
}

// processes are the pids of the first process and of the log writer of an
// environment, which no restart of a service may change.
func (m *Machine) processes(tb testing.TB, env Environment) string {
	tb.Helper()
	return m.Sh(tb, "cat /sys/fs/cgroup/remotegpu/"+env.ID+"/cgroup.procs; pgrep -f 'logwriter.*"+env.ID+"'")
}
