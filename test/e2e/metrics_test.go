package e2e_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/test/fakenvml"
)

// scrape is what the node shows to who has a token; "": on its socket.
func (n *Node) scrape(tb testing.TB, token string) string {
	tb.Helper()
	if token == "" {
		return n.Sh(tb, "curl --silent --show-error --fail --unix-socket "+n.Socket()+" http://node/metrics")
	}
	return n.Sh(tb, "curl --silent --show-error --fail -H 'Authorization: Bearer "+token+"' http://127.0.0.1:7480/metrics")
}

// A real Prometheus reads what GPUs do and who has them, with a token that opens
// nothing else.
func TestMetrics(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables, usual, testutil.Programs, testutil.Prometheus)
	library := fakenvml.Build(t, t.TempDir(), fakenvml.Version)
	plain := gpus.Config{Name: "NVIDIA L4", Architecture: 9, MemoryMB: 23034, CudaMajor: 8, CudaMinor: 9}
	world := fakenvml.Host{GPUs: []fakenvml.GPU{
		{Model: plain, ECC: true, Corrected: 3, Temperature: 66, Slowdown: 90, Power: 71500, UsedMB: 300, Util: 42, Encoder: 7}, {Model: gpus.A100_SXM4_40GB, Minor: 1},
	}}
	library.Set(t, world)
	library.MIGMode(t, 1, true)
	n := Start(t, usual, fmt.Sprintf("[gpu]\nlibrary = %q\ninjection = \"none\"\nhand_over = 1\n", library.Path))
	n.Must(t, "env", "create", "alone", "--image", n.Image, "--gpus", "uuid=0")
	n.Must(t, "env", "create", "part", "--image", n.Image, "--gpu-mode", "mig", "--gpu-profile", "1g.5gb")
	world.GPUs[0].Processes = []fakenvml.Process{{Kind: 'c', PID: n.pid(t, "alone"), MB: 300}}
	library.Set(t, world)

	// Who may ask.
	read := func(name string) string { return n.Sh(t, "cat "+n.Dir+"/state/"+name) }
	token, all := read("metrics-token"), read("token")
	if mode := n.Sh(t, "stat -c %a "+n.Dir+"/state/metrics-token"); mode != "600" || token == all {
		t.Errorf("the token of the metrics has mode %s", mode)
	}
	status := func(path, token string) string {
		return n.Sh(t, "curl --silent -o /dev/null -w '%{http_code}' -H 'Authorization: Bearer "+token+"' http://127.0.0.1:7480"+path)
	}
	for _, test := range [][3]string{
		{"/metrics", token, "200"},
		{"/metrics", all, "200"},
		{"/metrics", "wrong", "401"},
		{"/remotegpu.v1.NodeService/GetNodeInfo?encoding=json&message=%7B%7D&connect=v1", token, "401"},
	} {
		if got := status(test[0], test[1]); got != test[2] {
			t.Errorf("%s: status %s, want %s", test[0], got, test[2])
		}
	}

	// What is said, and that it is said well.
	uuid := fakenvml.UUID(0)
	Eventually(t, "what the environment uses", func() bool {
		return strings.Contains(n.scrape(t, ""), "remotegpu_environment_gpu_memory_used_bytes{GPU_I_ID=\"\",GPU_I_PROFILE=\"\",UUID=\""+uuid+"\",environment=\""+
			n.Get(t, "alone").ID+"\",name=\"alone\",project=\"default\"} 3.145728e+08\n")
	})
	text := n.scrape(t, token)
	for _, series := range []string{
		"remotegpu_gpu_up 1", `remotegpu_gpu_health{UUID="` + uuid + `",state="ok"} 1`, `remotegpu_gpu_leases{UUID="` + uuid + `",mode="exclusive"} 1`,
		`remotegpu_gpu_leases{UUID="` + fakenvml.UUID(1) + `",mode="mig"} 1`, `name="part",project="default"} 1`, `modelName="NVIDIA L4"`, "remotegpu_build_info{",
		`GPU_I_ID="1",GPU_I_PROFILE="1g.5gb"`, "process_open_fds", "go_goroutines",
	} {
		if !strings.Contains(text, series) {
			t.Errorf("no %s in\n%s", series, text)
		}
	}
	// The exporter's names are not what promtool likes; ours are.
	check := exec.CommandContext(t.Context(), "promtool", "check", "metrics")
	check.Stdin = strings.NewReader(text + "\n") // which Sh takes off
	said, err := check.CombinedOutput()
	if code := check.ProcessState.ExitCode(); code != 0 && code != 3 {
		t.Errorf("promtool check metrics: %v\n%s", err, said)
	}
	for line := range strings.Lines(string(said)) {
		if !strings.HasPrefix(line, "DCGM_FI_DEV_") {
			t.Errorf("promtool says: %s", line)
		}
	}

	query := n.prometheus(t, token)
	for expression, want := range map[string]string{
		"up": `"1"`, "remotegpu_gpu_up": `"1"`, "DCGM_FI_DEV_GPU_TEMP": `"66"`, "DCGM_FI_DEV_POWER_USAGE": `"71.5"`, "DCGM_FI_DEV_FB_USED{GPU_I_ID=\"\",gpu=\"0\"}": `"300"`,
		"DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": `"3"`, "remotegpu_environment_gpu_utilization_ratio{name=\"alone\"}": `"0.42"`,
		"remotegpu_environment_gpu_encoder_utilization_ratio{name=\"alone\"}": `"0.07"`,
	} {
		Eventually(t, expression, func() bool { return strings.Contains(query(expression), want+"]") })
	}
	// Errors of programs are counted; a driver that fails is told, and no GPU gone.
	for range 3 {
		library.XID(t, 0, 31)
	}
	Eventually(t, "the errors to be counted", func() bool {
		now := n.scrape(t, "")
		return strings.Contains(now, `remotegpu_gpu_xid_errors_total{UUID="`+uuid+`",xid="31"} 3`) && strings.Contains(now, "DCGM_FI_DEV_XID_ERRORS{") &&
			strings.Contains(now, `pci_bus_id="0000`+strings.ToUpper(fakenvml.PCI(0))+`"} 31`)
	})
	n.ailing(t, library, &world)
	world.Rules = []string{"fail nvmlInit_v2 999"}
	library.Set(t, world)
	Eventually(t, "the failure to be shown", func() bool { return strings.Contains(n.scrape(t, ""), "\nremotegpu_gpu_up 0\n") })
	if text := n.scrape(t, ""); !strings.Contains(text, `name="alone",project="default"} 1`) || !strings.Contains(text, `remotegpu_gpu_info{UUID="`+uuid) || strings.Contains(text, "DCGM_FI_DEV_FB_USED{") {
		t.Errorf("of a driver that fails: %s", text)
	}
	world.Rules = nil
	library.Set(t, world)
}

// ailing has the first GPU become too hot, and then lose memory: who has it keeps
// it, and is told.
func (n *Node) ailing(t *testing.T, library *fakenvml.Library, world *fakenvml.Host) {
	t.Helper()
	is := func(state string) bool {
		n.Must(t, "node", "reconcile") // else it is a minute to the next pass
		return strings.Contains(n.scrape(t, ""), `remotegpu_gpu_health{UUID="`+fakenvml.UUID(0)+`",state="`+state+`"} 1`)
	}
	world.GPUs[0].Temperature, world.GPUs[0].Shutdown = 101, 100
	library.Set(t, *world)
	Eventually(t, "the heat to be shown", func() bool { return is("hot") && slices.Contains(n.events(t, "alone"), "gpus") })
	Eventually(t, "the condition", func() bool { return strings.Contains(n.Must(t, "node", "info", "-o", "json"), "GPU_WARNING") })
	if said := n.Must(t, "gpu", "get", "0"); !strings.Contains(said, "hot") || !strings.Contains(said, "101 °C") || !strings.Contains(said, "MiB alone") {
		t.Errorf("gpu get says: %s", said)
	}
	world.GPUs[0].Temperature, world.GPUs[0].ECCEver = 60, 4
	library.Set(t, *world)
	Eventually(t, "memory errors to count", func() bool { return is("unhealthy") && slices.Contains(n.events(t, "alone"), "gpu_fail") })
	if said := n.Must(t, "gpu", "get", "0"); !strings.Contains(said, "its memory had 4 errors that were not corrected") {
		t.Errorf("gpu get says: %s", said)
	}
	Eventually(t, "its loss to be shown", func() bool {
		return strings.Contains(n.scrape(t, ""), `name="alone",project="default"} 1`) && strings.Contains(n.Must(t, "node", "info", "-o", "json"), "GPU_LOST")
	})
}

// prometheus runs one beside the node that scrapes it, and returns how to query
// it.
func (n *Node) prometheus(t *testing.T, token string) (query func(expression string) string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"token": token,
		"prometheus.yml": `
global: {scrape_interval: 1s}
scrape_configs:
  - job_name: remotegpu
    authorization: {credentials_file: token}
    static_configs: [{targets: ["127.0.0.1:7480"]}]
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	server := n.command(t, "prometheus", "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address=127.0.0.1:9090", "--log.level=warn")
	var said bytes.Buffer
	server.Stdout, server.Stderr = &said, &said
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
		if t.Failed() {
			t.Logf("prometheus: %s", said.String())
		}
	})
	return func(expression string) string {
		return n.Sh(t, "curl --silent --get --data-urlencode 'query="+expression+"' http://127.0.0.1:9090/api/v1/query || true")
	}
}
