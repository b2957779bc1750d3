package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/config"
	"github.com/remotegpu/remotegpu/internal/problem"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "remotegpud.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaultFileLoadsBackUnchanged(t *testing.T) {
	text, err := config.Default().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := config.Load(write(t, string(text)), false)
	if err != nil {
		t.Fatalf("the default file is refused: %v", err)
	}
	absent, err := config.Load(filepath.Join(t.TempDir(), "none.toml"), true)
	if err != nil {
		t.Fatal(err)
	}
	again, _ := loaded.Marshal()
	want, _ := absent.Marshal()
	if string(again) != string(want) {
		t.Errorf("the default file changes the configuration:\n%s\nwant\n%s", again, want)
	}
}

func TestLoadRefuses(t *testing.T) {
	for _, test := range []struct{ name, text, says string }{
		{"an unknown key", "version = 1\n[api]\nsocket_path = \"/x\"\n", "socket_path"},
		{"another version", "version = 2\n", "version"},
		{"a file that is no TOML", "version = \n", "toml"},
		{"a relative state directory", "version = 1\n[node]\nstate_dir = \"x\"\n", "state_dir"},
		{"a port that is none", "version = 1\n[api]\nlisten = \"127.0.0.1:99999\"\n", "api.listen"},
		{"a range that is none", "version = 1\n[network]\nrange = \"10.88.0.1/16\"\n", "network.range"},
		{"an IPv6 range", "version = 1\n[network]\nrange = \"fd00::/64\"\n", "network.range"},
		{"a key without its certificate", "version = 1\n[api]\ntls_key = \"/k\"\n", "tls_cert"},
		{"a poll that never comes", "version = 1\n[network]\nfirewall_poll = 3601\n", "firewall_poll"},
		{"DNS on all addresses", "version = 1\n[dns]\nlisten = [\"0.0.0.0\"]\n", "dns.listen"},
		{"DNS at a name", "version = 1\n[dns]\nlisten = [\"localhost:53\"]\n", "dns.listen"},
		{"a zone that is none", "version = 1\n[dns]\nzone = \"gpu..internal\"\n", "dns.zone"},
		{"no zone", "version = 1\n[dns]\nzone = \"\"\n", "dns.zone"},
		{"a public zone that nobody is answered for", "version = 1\n[[dns.zones]]\nname = \"env.example.com\"\npublic = true\n", "dns.zones[0].public"},
		{"a name server that is none", "version = 1\n[[dns.zones]]\nname = \"env.example.com\"\nns = [\"a b\"]\n", "dns.zones[0].ns[0]"},
		{"an address in place of a network", "version = 1\n[dns]\nallow = [\"192.0.2.1\"]\n", "dns.allow"},
		{"an address with the length of a network", "version = 1\n[dns]\nrate_exempt = [\"192.0.2.1/24\"]\n", "dns.rate_exempt"},
		{"a zone twice", "version = 1\n[[dns.zones]]\nname = \"GPU.internal.\"\n", "dns.zones[0].name"},
		{"a zone within another", "version = 1\n[[dns.zones]]\nname = \"b.gpu.internal\"\n", "dns.zones[0].name"},
		{"a zone around another", "version = 1\n[[dns.zones]]\nname = \"env.example.com\"\n[[dns.zones]]\nname = \"example.com\"\n", "dns.zones[1].name"},
		{"a top-level domain", "version = 1\n[dns]\nzone = \"com\"\n", "dns.zone"},
		{"DNS at an address twice", "version = 1\n[dns]\nlisten = [\"192.0.2.7\", \"192.0.2.7:53\"]\n", "dns.listen"},
		{"DNS at an address of environments", "version = 1\n[network]\nrange = \"10.88.0.0/16\"\n[dns]\nlisten = [\"10.88.0.1\"]\n", "dns.listen"},
		{"an advertised name", "version = 1\n[dns]\nadvertise = [\"gpu1\"]\n", "dns.advertise"},
		{"a way for GPUs that is none", "version = 1\n[gpu]\ninjection = \"docker\"\n", "gpu.injection"},
		{"a relative hook", "version = 1\n[gpu]\nhook = \"nvidia-cdi-hook\"\n", "gpu.hook"},
		{"a GPU policy that is none", "version = 1\n[gpu]\npolicy = \"random\"\n", "gpu.policy"},
		{"a GPU cure that is none", "version = 1\n[gpu]\ncure = \"reboot\"\n", "gpu.cure"},
		{"a GPU that nobody shares", "version = 1\n[gpu]\nmax_shared = 0\n", "gpu.max_shared"},
		{"a way of sharing GPUs that is none", "version = 1\n[gpu]\nshared_by = \"turns\"\n", "gpu.shared_by"},
		{"GPUs shared by what does not run", "version = 1\n[gpu]\nshared_by = \"mps\"\n", "gpu.shared_by"},
		{"GPUs shared by what nothing brings", "version = 1\n[gpu]\nshared_by = \"mps\"\nmps_control = \"/x\"\ninjection = \"dri\"\n", "gpu.shared_by"},
		{"a time slice that is none", "version = 1\n[gpu]\ntime_slice = \"2ms\"\n", "gpu.time_slice"},
		{"a relative nvidia-smi", "version = 1\n[gpu]\nnvidia_smi = \"nvidia-smi\"\n", "gpu.nvidia_smi"},
		{"a negative reserve", "version = 1\n[gpu]\nreserve = -1\n", "gpu.reserve"},
		{"a hand-over without end", "version = 1\n[gpu]\nhand_over = 3600\n", "gpu.hand_over"},
		{"a negative rate", "version = 1\n[dns]\nrate_limit = -1\n", "dns.rate_limit"},
		{"a denied port that is none", "version = 1\n[ports]\ndeny = [\"6006\", \"7300-6800\"]\n", "ports.deny"},
		{"a negative quarantine", "version = 1\n[ports]\nquarantine = -1\n", "ports.quarantine"},
		{"a public host with a port", "version = 1\n[node]\npublic_host = \"gpu1:22\"\n", "node.public_host"},
		{"a level that is none", "version = 1\n[log]\nlevel = \"verbose\"\n", "log.level"},
		{"an upstream that is a name", "version = 1\n[network]\nupstreams = [\"dns.example\"]\n", "upstreams"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := config.Load(write(t, test.text), false)
			if err == nil || problem.Of(err).Reason != problem.ConfigInvalid || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want CONFIG_INVALID that mentions %q", err, test.says)
			}
		})
	}
}

// A list in the file takes the place of the default one.
func TestListsReplaceTheirDefault(t *testing.T) {
	for text, want := range map[string]int{"deny = []": 0, `deny = ["6006"]`: 1, "": len(config.DefaultDeny())} {
		cfg, err := config.Load(write(t, "version = 1\n[ports]\n"+text+"\n"), false)
		if err != nil || len(cfg.Ports.Deny) != want {
			t.Errorf("%q: denied %v, %v, want %d", text, cfg.Ports.Deny, err, want)
		}
	}
	for _, text := range config.DefaultDeny() {
		if _, _, err := config.ParsePorts(text); err != nil {
			t.Error(err)
		}
	}
}

// A path may end in a slash.
func TestPathsAreCleaned(t *testing.T) {
	cfg, err := config.Load(write(t, "version = 1\n[node]\nstate_dir = \"/srv/state/\"\n[mounts]\nallowed_roots = [\"/srv/data/\", \"/mnt\"]\n"), false)
	if err != nil || cfg.Node.StateDir != "/srv/state" || len(cfg.Mounts.AllowedRoots) != 2 || cfg.Mounts.AllowedRoots[0] != "/srv/data" {
		t.Errorf("state_dir %q, allowed_roots %q, %v", cfg.Node.StateDir, cfg.Mounts.AllowedRoots, err)
	}
}

func TestLoadWithoutFile(t *testing.T) {
	if _, err := config.Load(filepath.Join(t.TempDir(), "none.toml"), false); err == nil {
		t.Error("a missing file that was named is accepted")
	}
}
