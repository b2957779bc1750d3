package archtest_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

const module = "github.com/remotegpu/remotegpu/"

// layers are the packages from the bottom up: a package imports packages of
// layers below its own, and inside its own layer only those below its own
// directory or the one it lies in. The first prefix that fits decides.
var layers = []struct {
	name     string
	prefixes []string
}{
	{"leaves", []string{
		"internal/atomicfile", "internal/certificate", "internal/cgroup", "internal/claim", "internal/cleanup", "internal/config", "internal/diskspace", "internal/dockerconfig",
		"internal/fault", "internal/holes", "internal/hostexec", "internal/imageref", "internal/keylock", "internal/problem", "internal/projectquota",
		"internal/rootfs", "internal/sqlite", "internal/tick", "internal/trusted", "internal/version", "desktop/rfb", "images",
	}},
	{"mechanisms", []string{"gpu", "network", "runtime/volume", "runtime/operation", "runtime/logfile"}},
	{"domain", []string{"desktop", "runtime"}},
	{"adapters", []string{"store", "runtime/containerd", "build"}},
	{"rpc", []string{"internal/rpc", "internal/metrics"}},
	{"programs", []string{"internal/node", "internal/cli", "cmd"}},
	{"tests", []string{"internal/testutil", "internal/archtest", "runtime/runtimetest", "test", "network/port/porttest", "runtime/operation/operationtest"}},
}

// soleImporters may import a heavy module; nobody else.
var soleImporters = map[string][]string{
	"github.com/containerd/containerd/v2":         {"runtime/containerd"},
	"github.com/containerd/containerd/api":        {"runtime/containerd"},
	"github.com/moby/buildkit":                    {"build/buildkit"},
	"github.com/mattn/go-sqlite3":                 {"internal/sqlite"},
	"github.com/coreos/go-iptables":               {"network/firewall"},
	"github.com/vishvananda/netlink":              {"network"},
	"github.com/godbus/dbus/v5":                   {"network"},
	"github.com/coder/websocket":                  {"network/gateway"},
	"github.com/miekg/dns":                        {"network/dns"},
	"github.com/NVIDIA/":                          {"gpu/nvidia"},
	"tags.cncf.io/container-device-interface/pkg": {"runtime/containerd"},
	"github.com/spf13/cobra":                      {"internal/cli", "cmd/remotegpud"},
	"github.com/pelletier/go-toml/v2":             {"internal/config"},
	"github.com/prometheus/":                      {"internal/metrics"},
	"connectrpc.com/":                             {"internal/rpc", "internal/cli", "internal/node", "gen"},
	"github.com/remotegpu/remotegpu/gen/":         {"internal/rpc", "internal/cli", "internal/node", "gen"},
}

type pkg struct {
	ImportPath string
	Imports    []string
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=ImportPath,Imports"}, args...)...)
	cmd.Dir = testutil.Repository()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var packages []pkg
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

// layerOf is the index of the layer with the longest prefix that fits.
func layerOf(path string) int {
	best, length := -1, -1
	for i, layer := range layers {
		for _, prefix := range layer.prefixes {
			if (path == prefix || strings.HasPrefix(path, prefix+"/")) && len(prefix) > length {
				best, length = i, len(prefix)
			}
		}
	}
	return best
}

// family is the directory that packages of one layer share when they belong
// together: network/port and network/firewall are both of network.
func family(path string) string {
	first, rest, _ := strings.Cut(path, "/")
	if first == "runtime" && rest != "" {
		return path // volume and operation know nothing of each other
	}
	return first
}

func TestImportsPointDownwards(t *testing.T) {
	for _, p := range list(t, "./...") {
		path, ours := strings.CutPrefix(p.ImportPath, module)
		if !ours || strings.HasPrefix(path, "gen/") {
			continue
		}
		layer := layerOf(path)
		if layer < 0 {
			t.Errorf("package %s is in no layer: add it to layers", path)
			continue
		}
		for _, imported := range p.Imports {
			target, ours := strings.CutPrefix(imported, module)
			if !ours || strings.HasPrefix(target, "gen/") {
				continue
			}
			below := layerOf(target)
			switch {
			case below < layer:
			case below == layer && (family(path) == family(target) || layers[layer].name == "leaves" || layers[layer].name == "tests" || layers[layer].name == "programs"):
			case path == "desktop" && target == "runtime": // a desktop is of an environment
			default:
				t.Errorf("%s (%s) imports %s (%s)", path, layers[layer].name, target, layers[below].name)
			}
		}
	}
}

func TestHeavyModulesHaveOneImporter(t *testing.T) {
	for _, p := range list(t, "./...") {
		path, ours := strings.CutPrefix(p.ImportPath, module)
		if !ours || layerOf(path) == len(layers)-1 {
			continue // test helpers may use anything
		}
		for _, imported := range p.Imports {
			for prefix, importers := range soleImporters {
				if !strings.HasPrefix(imported, prefix) {
					continue
				}
				if !slices.ContainsFunc(importers, func(i string) bool { return path == i || strings.HasPrefix(path, i+"/") }) {
					t.Errorf("%s imports %s; only %v may", path, imported, importers)
				}
			}
		}
	}
}

// There is a log writer for every container: what it links is memory times
// their number.
func TestLogWriterLinksNothing(t *testing.T) {
	for _, p := range list(t, "-deps", "./cmd/remotegpu-logwriter") {
		first, _, _ := strings.Cut(p.ImportPath, "/")
		if strings.Contains(first, ".") && !strings.HasPrefix(p.ImportPath, "golang.org/x/sys/unix") &&
			p.ImportPath != module+"runtime/logfile" && p.ImportPath != module+"cmd/remotegpu-logwriter" {
			t.Errorf("remotegpu-logwriter links %s", p.ImportPath)
		}
	}
}

func TestCommandLineLinksNoDaemon(t *testing.T) {
	for _, p := range list(t, "-deps", "./cmd/remotegpu") {
		for _, heavy := range []string{
			"github.com/containerd/containerd", "github.com/moby/buildkit", "github.com/mattn/go-sqlite3", "github.com/vishvananda/netlink",
			"github.com/coreos/go-iptables", module + "runtime", module + "network", module + "store", module + "internal/node",
		} {
			if strings.HasPrefix(p.ImportPath, heavy) {
				t.Errorf("remotegpu links %s", p.ImportPath)
			}
		}
	}
}
