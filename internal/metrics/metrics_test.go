package metrics_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/gpu/gputest"
	"github.com/remotegpu/remotegpu/internal/metrics"
	"github.com/remotegpu/remotegpu/runtime"
)

// gpus tells what a test says.
type gpus struct {
	report atomic.Pointer[runtime.GPUReport]
	hang   chan struct{} // nil: it answers
	asked  atomic.Int32
}

func (g *gpus) ReportGPUs(ctx context.Context) runtime.GPUReport {
	g.asked.Add(1)
	if g.hang != nil {
		select {
		case <-g.hang:
		case <-ctx.Done():
		}
	}
	return *g.report.Load()
}

// report has a GPU that is measured and lent, one with an instance, and one that
// has gone.
func report() *runtime.GPUReport {
	plain, part := gputest.Plain(1)[0], gputest.A100(2, true)
	plain.Vitals = gpu.Vitals{Temperature: 91, SlowdownAt: 90, ShutdownAt: 100}
	plain.Health = gpu.Health{Unhealthy: true, Passing: true}
	part.MIG.Instances = []gpu.MIGInstance{{UUID: "MIG-1", Profile: "1g.5gb", GPUInstance: 7}}
	usage := gpu.Untold(plain.UUID)
	usage.UtilPercent, usage.MemoryUsed, usage.MemoryFree, usage.PowerMilliwatts, usage.ECCUncorrected = 42, 3<<20, 5<<19, 71500, 2
	usage.Processes = make([]gpu.Process, 3)
	parted := gpu.Untold(part.UUID)
	parted.Instances = []gpu.InstanceUsage{{UUID: "MIG-1", MemoryUsed: 1 << 20}}
	lease := gpu.Lease{EnvID: "01ENV", EnvName: "one", GPU: plain.UUID, Mode: gpu.Exclusive, Enforcement: gpu.BySole}
	return &runtime.GPUReport{
		Inventory: gpu.Inventory{Driver: "580.1", CUDA: "13.0", At: time.Unix(1700000000, 0)},
		GPUs: []runtime.GPU{
			{Device: plain, Usage: &usage, Leases: []gpu.Lease{lease}, Mark: gpu.Mark{Drained: true}, Warnings: plain.Vitals.Warnings()},
			{Device: part, Usage: &parted},
			{Device: gpu.Device{UUID: "GPU-gone", Index: -1, Minor: -1}, Gone: true},
		},
		Errors: map[string]runtime.GPUErrors{plain.UUID: {Last: 31, XIDs: map[int]int64{31: 4, 0: 2}}},
		Holders: []runtime.GPUHolder{
			{Lease: lease, Project: "p", Stats: &runtime.GPUStats{MemoryBytes: 300, MemoryLimitBytes: 400, UtilPercent: 42, EncoderPercent: -1, DecoderPercent: 0, Processes: 2}},
			{
				Lease: gpu.Lease{EnvID: "01PART", EnvName: "part", GPU: part.UUID, MIG: "MIG-1", Profile: "1g.5gb", Mode: gpu.MIGMode, Enforcement: gpu.ByHardware}, Lost: true,
				Stats: &runtime.GPUStats{MemoryUnknown: true, UtilPercent: -1, EncoderPercent: -1, DecoderPercent: -1},
			},
		},
	}
}

func scrape(t *testing.T, handler http.Handler) string {
	t.Helper()
	answer := httptest.NewRecorder()
	handler.ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", http.NoBody))
	if answer.Code != http.StatusOK {
		t.Fatalf("status %d: %s", answer.Code, answer.Body)
	}
	return answer.Body.String()
}

func handler(t *testing.T, g metrics.GPUs, dcgm bool, patience time.Duration) http.Handler {
	t.Helper()
	h, err := metrics.Handler(t.Context(), metrics.Config{GPUs: g, DCGM: dcgm, Hostname: "host1", Patience: patience, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func has(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

func TestGPUs(t *testing.T) {
	t.Parallel()
	g := &gpus{}
	g.report.Store(report())
	text := scrape(t, handler(t, g, true, 0))
	first, second := gputest.UUID(0), gputest.UUID(2)
	whole := `{GPU_I_ID="",GPU_I_PROFILE="",Hostname="host1",UUID="` + first + `",device="nvidia0",gpu="0",modelName="NVIDIA L4",pci_bus_id="00000000:10:00.0"} `
	env := `{GPU_I_ID="",GPU_I_PROFILE="",UUID="` + first + `",environment="01ENV",name="one",project="p"} `
	part := `{GPU_I_ID="7",GPU_I_PROFILE="1g.5gb",UUID="` + second + `",environment="01PART",name="part",project=""} `
	has(t, text,
		`remotegpu_gpu_up 1`, `remotegpu_gpu_inventory_timestamp_seconds 1.7e+09`, `remotegpu_gpu_driver_info{cuda="13.0",driver="580.1",nvml=""} 1`,
		`remotegpu_gpu_info{UUID="`+first+`",gpu="0",model="NVIDIA L4",pci_bus_id="00000000:10:00.0",vendor="nvidia"} 1`,
		`remotegpu_gpu_info{UUID="GPU-gone",gpu="",model="",pci_bus_id="",vendor=""} 1`,
		`remotegpu_gpu_health{UUID="`+first+`",state="hot"} 1`, `remotegpu_gpu_health{UUID="`+first+`",state="ok"} 0`,
		`remotegpu_gpu_health{UUID="`+second+`",state="ok"} 1`, `remotegpu_gpu_health{UUID="GPU-gone",state="gone"} 1`,
		`remotegpu_gpu_drained{UUID="`+first+`"} 1`, `remotegpu_gpu_warnings{UUID="`+first+`"} 1`,
		`remotegpu_gpu_leases{UUID="`+first+`",mode="exclusive"} 1`, `remotegpu_gpu_leases{UUID="`+first+`",mode="mig"} 0`,
		`remotegpu_gpu_xid_errors_total{UUID="`+first+`",xid="31"} 4`, `remotegpu_gpu_xid_errors_total{UUID="`+first+`",xid="other"} 2`,
		`remotegpu_gpu_slowdown_temperature_celsius{UUID="`+first+`"} 90`, `remotegpu_gpu_processes{UUID="`+first+`"} 3`,
		`DCGM_FI_DEV_GPU_UTIL`+whole+`42`, `DCGM_FI_DEV_FB_USED`+whole+`3`, `DCGM_FI_DEV_FB_FREE`+whole+`2.5`, `DCGM_FI_DEV_POWER_USAGE`+whole+`71.5`,
		`DCGM_FI_DEV_XID_ERRORS`+whole+`31`, `DCGM_FI_DEV_ECC_DBE_VOL_TOTAL`+whole+`2`,
		`DCGM_FI_DEV_FB_USED{GPU_I_ID="7",GPU_I_PROFILE="1g.5gb",Hostname="host1",UUID="`+second+`",device="nvidia2",gpu="2",modelName="NVIDIA A100-SXM4-40GB",pci_bus_id="00000000:12:00.0"} 1`,
		`remotegpu_environment_gpu_memory_used_bytes`+env+`300`, `remotegpu_environment_gpu_memory_limit_bytes`+env+`400`,
		`remotegpu_environment_gpu_utilization_ratio`+env+`0.42`, `remotegpu_environment_gpu_decoder_utilization_ratio`+env+`0`,
		`remotegpu_environment_gpu_processes`+env+`2`, `remotegpu_environment_gpu_lost`+env+`0`, `remotegpu_environment_gpu_lost`+part+`1`,
		`remotegpu_environment_gpu_lease_info`+`{GPU_I_ID="7",GPU_I_PROFILE="1g.5gb",UUID="`+second+`",enforcement="hardware",environment="01PART",mode="mig",name="part",project=""} 1`,
	)
	for _, line := range []string{
		"DCGM_FI_DEV_GPU_TEMP{", "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL{", "remotegpu_environment_gpu_encoder_utilization_ratio{", "remotegpu_environment_gpu_memory_used_bytes" + part,
	} {
		if strings.Contains(text, line) {
			t.Errorf("what is not told is shown: %s", line)
		}
	}
	if text := scrape(t, handler(t, g, false, 0)); strings.Contains(text, "DCGM") || !strings.Contains(text, "remotegpu_gpu_up 1") {
		t.Errorf("without the names of DCGM: %s", text)
	}
	if text := scrape(t, handler(t, nil, true, 0)); strings.Contains(text, "gpu_up") || !strings.Contains(text, "remotegpu_build_info{") ||
		!strings.Contains(text, "process_resident_memory_bytes") || !strings.Contains(text, "go_goroutines") {
		t.Errorf("of a node that does not look for GPUs: %s", text)
	}
}

// GPUs whose software does not answer are not gone, and not measured.
func TestGPUsThatDoNotAnswer(t *testing.T) {
	t.Parallel()
	g := &gpus{}
	g.report.Store(report())
	h := handler(t, g, true, 500*time.Millisecond)
	for !strings.Contains(scrape(t, h), "\nremotegpu_gpu_up 1\n") { // on a machine that is busy
		if t.Context().Err() != nil {
			t.FailNow()
		}
	}
	known := func() {
		t.Helper()
		text := scrape(t, h)
		has(t, text, `remotegpu_gpu_up 0`, `remotegpu_gpu_drained{UUID="`+gputest.UUID(0)+`"} 1`)
		if strings.Contains(text, "DCGM_FI_DEV_FB_USED{") || strings.Contains(text, "utilization_ratio{") || !strings.Contains(text, "lease_info{") {
			t.Errorf("measurements of before are shown, or leases are not:\n%s", text)
		}
	}
	silent := report()
	silent.Err = errors.New("no answer")
	g.report.Store(silent)
	known()
	g.report.Store(&runtime.GPUReport{Err: errors.New("the database is locked")})
	known()
	// One that hangs is asked once, however many scrapes come.
	g.hang = make(chan struct{})
	g.report.Store(report())
	before := g.asked.Load()
	known()
	known()
	if asked := g.asked.Load() - before; asked != 1 {
		t.Errorf("it was asked %d times", asked)
	}
	close(g.hang)
	for until := time.Now().Add(time.Minute); !strings.Contains(scrape(t, h), "\nremotegpu_gpu_up 1\n"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("it is not told that it answers again")
		}
	}
}
