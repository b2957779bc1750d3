package cli_test

import (
	"archive/tar"
	"bytes"
	"context"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/gen/remotegpu/v1/remotegpuv1connect"
	"github.com/remotegpu/remotegpu/internal/cli"
)

// fake is a node: it remembers the last request and answers what the test
// sets. It speaks the real protocol on a unix socket.
type fake struct {
	remotegpuv1connect.UnimplementedEnvironmentServiceHandler
	remotegpuv1connect.UnimplementedOperationServiceHandler
	remotegpuv1connect.UnimplementedImageServiceHandler
	remotegpuv1connect.UnimplementedPortServiceHandler
	remotegpuv1connect.UnimplementedDesktopServiceHandler
	remotegpuv1connect.UnimplementedNodeServiceHandler
	remotegpuv1connect.UnimplementedVolumeServiceHandler

	addr    string
	handler http.Handler
	mu      sync.Mutex
	last    proto.Message
	order   []string // names of the requests
	auth    string

	err       error  // every call fails with it
	refused   error  // a create fails with it
	overtaken func() // called before an update is answered
	env       *remotegpuv1.Environment
	free      string                   // name that nothing has
	ops       []*remotegpuv1.Operation // what a watch sends; it then blocks
	pending   chan struct{}            // closed when a watch has sent all and blocks
	result    *remotegpuv1.RunCommandResponse
	desktops  []*remotegpuv1.GetDesktopResponse
	findings  []*remotegpuv1.Finding
	differs   []*remotegpuv1.FirewallDifference
	repairs   *remotegpuv1.FirewallState
	quota     *remotegpuv1.DiskQuota
	mapping   *remotegpuv1.PortMapping // that every id is of; nil: aMapping
	portOp    *remotegpuv1.Operation   // that changes of mappings begin
	total     int                      // that lists of operations and leases have; 0: what else is set
	drop      int                      // this many watches break after their first message
	cancelled []*remotegpuv1.Operation // what ops are once one is cancelled; nil: as before

	snapshots *snapshots
	names     *dnsFake
	created   *remotegpuv1.CreateEnvironmentRequest

	files   string       // directory with the files of every environment and volume
	parts   atomic.Int64 // messages with data that uploads have sent
	cut     bool         // downloads break off
	hostile []tar.Header // downloads send these
	lone    bool         // they are no directory
	picture []byte       // of the desktop; nil: a large one
	t       *testing.T
	archive []byte // that an export sends, or an import has sent
	logged  *logged
	watched *watched
	watches int // without watched: the second one has nothing to say
	conns   map[net.Conn]bool
	dies    bool          // once it runs the command "sleep"
	left    chan struct{} // gets something for each caller of "sleep" that left
}

func newFake(t *testing.T) *fake {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{addr: "unix://" + filepath.ToSlash(path), env: environment(), pending: make(chan struct{}), left: make(chan struct{}, 8), t: t}
	server := connect.NewServer()
	remotegpuv1connect.RegisterEnvironmentServiceHandler(server, f)
	remotegpuv1connect.RegisterOperationServiceHandler(server, f)
	remotegpuv1connect.RegisterImageServiceHandler(server, f)
	remotegpuv1connect.RegisterPortServiceHandler(server, f)
	remotegpuv1connect.RegisterDesktopServiceHandler(server, f)
	remotegpuv1connect.RegisterNodeServiceHandler(server, f)
	f.snapshots = &snapshots{fake: f}
	remotegpuv1connect.RegisterSnapshotServiceHandler(server, f.snapshots)
	remotegpuv1connect.RegisterVolumeServiceHandler(server, f)
	f.names = &dnsFake{fake: f}
	remotegpuv1connect.RegisterDNSServiceHandler(server, f.names)
	remotegpuv1connect.RegisterGPUServiceHandler(server, &gpuFake{fake: f})
	mux := http.NewServeMux()
	connecthttp.Mount(mux, server)
	f.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.auth = r.Header.Get("Authorization")
		f.mu.Unlock()
		mux.ServeHTTP(w, r)
	})
	h := &http.Server{Handler: f.handler, Protocols: new(http.Protocols)}
	h.Protocols.SetUnencryptedHTTP2(true)
	f.conns = make(map[net.Conn]bool)
	h.ConnState = func(conn net.Conn, state http.ConnState) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.conns[conn] = true; state == http.StateClosed {
			delete(f.conns, conn)
		}
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = h.Serve(listener) }()
	t.Cleanup(func() { _ = h.Close(); <-done })
	return f
}

// die breaks every connection behind what was sent, as a daemon does that is
// killed.
func (f *fake) die() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for conn := range f.conns {
		if c, ok := conn.(*net.UnixConn); ok {
			_ = c.CloseWrite()
		}
	}
}

func (f *fake) got(request proto.Message) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = request
	f.order = append(f.order, string(request.ProtoReflect().Descriptor().Name()))
	return f.err
}

// page is how many of total one page has, and the token of the next one.
func (f *fake) page(size int32, token string) (of int, next string) {
	if before, err := strconv.Atoi(token); err == nil {
		of = before
	}
	end := min(of+int(size), f.total)
	if end < f.total {
		next = strconv.Itoa(end)
	}
	return end - of, next
}

// none is the error of naming what is not there.
func (f *fake) none(name string) error {
	if f.free != "" && name == f.free {
		return connect.NewError(connect.CodeNotFound, "there is no "+name)
	}
	return nil
}

// run runs the program against the fake.
func (f *fake) run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return f.runWith(t.Context(), "", map[string]string{}, args...)
}

func (f *fake) runWith(ctx context.Context, stdin string, env map[string]string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	if env["REMOTEGPU_ADDR"] == "" {
		env["REMOTEGPU_ADDR"] = f.addr
	}
	code = cli.Run(ctx, args, strings.NewReader(stdin), &out, &errs, func(key string) string { return env[key] })
	return code, out.String(), errs.String()
}

func ago(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(-d)) }

func environment() *remotegpuv1.Environment {
	return &remotegpuv1.Environment{
		Id: "01ENV", Name: "demo", Project: "default", Node: "gpu1", Address: "10.88.0.2", Etag: "3",
		State: remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_RUNNING,
		Spec: &remotegpuv1.EnvironmentSpec{
			Image:     "docker.io/remotegpu/desktop-base:latest",
			Desktop:   &remotegpuv1.Desktop{Width: 1920, Height: 1080, Depth: 24},
			Resources: &remotegpuv1.Resources{CpuMillis: 1500, MemoryBytes: 8 << 30},
		},
		PortMappings: []*remotegpuv1.PortMapping{{
			ServiceType: remotegpuv1.ServiceType_SERVICE_TYPE_SSH, InternalPort: 22, ExternalPort: 22000,
			Protocol: remotegpuv1.Protocol_PROTOCOL_TCP,
		}},
		DesktopReady: true, CreatedAt: ago(3*time.Hour + 5*time.Minute),
	}
}

func operation(state remotegpuv1.OperationState, step string, done, total int64) *remotegpuv1.Operation {
	return &remotegpuv1.Operation{
		Id: "01OP", Kind: "environment.create", Target: "01ENV", State: state, Attempts: 1,
		Progress: &remotegpuv1.OperationProgress{Step: step, Done: done, Total: total},
	}
}

const (
	running   = remotegpuv1.OperationState_OPERATION_STATE_RUNNING
	succeeded = remotegpuv1.OperationState_OPERATION_STATE_SUCCEEDED
	failed    = remotegpuv1.OperationState_OPERATION_STATE_FAILED
	cancelled = remotegpuv1.OperationState_OPERATION_STATE_CANCELLED
)

// apiError is an error as the API sends it.
func apiError(t *testing.T, code connect.Code, reason, message, field, hint string) error {
	t.Helper()
	err := connect.NewError(code, message)
	details := []proto.Message{&errdetails.ErrorInfo{Reason: reason, Domain: "remotegpu"}}
	if field != "" {
		details = append(details, &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: field, Description: message, Reason: reason},
		}})
	}
	if hint != "" {
		details = append(details, &errdetails.LocalizedMessage{Locale: "en", Message: hint})
	}
	for _, message := range details {
		detail, bad := connectproto.NewErrorDetail(message)
		if bad != nil {
			t.Fatal(bad)
		}
		err = err.WithDetail(detail)
	}
	return err
}

func (f *fake) CreateEnvironment(_ context.Context, r *remotegpuv1.CreateEnvironmentRequest) (*remotegpuv1.CreateEnvironmentResponse, error) {
	f.mu.Lock()
	f.created = r
	f.mu.Unlock()
	if f.refused != nil {
		return nil, f.refused
	}
	return &remotegpuv1.CreateEnvironmentResponse{Environment: f.env, Operation: operation(running, "", 0, 0)}, f.got(r)
}

func (f *fake) GetEnvironment(_ context.Context, r *remotegpuv1.GetEnvironmentRequest) (*remotegpuv1.GetEnvironmentResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.free != "" && r.GetEnvironment() == f.free {
		return nil, connect.NewError(connect.CodeNotFound, "there is none")
	}
	return &remotegpuv1.GetEnvironmentResponse{Environment: f.env}, f.err
}

func (f *fake) ListEnvironments(_ context.Context, r *remotegpuv1.ListEnvironmentsRequest) (*remotegpuv1.ListEnvironmentsResponse, error) {
	if r.GetPageToken() == "" {
		return &remotegpuv1.ListEnvironmentsResponse{Environments: []*remotegpuv1.Environment{f.env}, NextPageToken: "2"}, f.got(r)
	}
	return &remotegpuv1.ListEnvironmentsResponse{Environments: []*remotegpuv1.Environment{{
		Id: "01TWO", Name: "two", Project: "default", State: remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_STOPPED,
		Spec: &remotegpuv1.EnvironmentSpec{Image: "app\x1b[31m"}, CreatedAt: ago(30 * time.Second),
	}}}, f.got(r)
}

func (f *fake) StartEnvironment(_ context.Context, r *remotegpuv1.StartEnvironmentRequest) (*remotegpuv1.StartEnvironmentResponse, error) {
	return &remotegpuv1.StartEnvironmentResponse{Environment: f.env}, f.got(r)
}

func (f *fake) StopEnvironment(_ context.Context, r *remotegpuv1.StopEnvironmentRequest) (*remotegpuv1.StopEnvironmentResponse, error) {
	if err := f.none(r.GetEnvironment()); err != nil {
		return nil, err
	}
	return &remotegpuv1.StopEnvironmentResponse{Environment: f.env, Operation: operation(running, "", 0, 0)}, f.got(r)
}

func (f *fake) DeleteEnvironment(_ context.Context, r *remotegpuv1.DeleteEnvironmentRequest) (*remotegpuv1.DeleteEnvironmentResponse, error) {
	return &remotegpuv1.DeleteEnvironmentResponse{Operation: operation(running, "", 0, 0)}, f.got(r)
}

func (f *fake) WatchEnvironments(_ context.Context, r *remotegpuv1.WatchEnvironmentsRequest, stream remotegpuv1connect.EnvironmentServiceWatchEnvironmentsServerStream) error {
	if err := f.got(r); err != nil {
		return err
	}
	if f.watched != nil {
		return f.watched.serve(stream, r)
	}
	f.mu.Lock()
	f.watches++
	again := f.watches > 1
	f.mu.Unlock()
	if again {
		return nil
	}
	for _, message := range []*remotegpuv1.WatchEnvironmentsResponse{{Environment: f.env}, {Synced: true}} {
		if err := stream.Send(message); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) RunCommand(ctx context.Context, r *remotegpuv1.RunCommandRequest) (*remotegpuv1.RunCommandResponse, error) {
	if f.dies && r.GetArgv()[0] == "sleep" {
		f.die()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return f.result, f.got(r)
}

func (f *fake) WatchOperation(ctx context.Context, _ *remotegpuv1.WatchOperationRequest, stream remotegpuv1connect.OperationServiceWatchOperationServerStream) error {
	f.mu.Lock()
	f.order = append(f.order, "WatchOperationRequest")
	ops, drop, err := f.ops, f.drop > 0, f.err
	f.drop--
	f.mu.Unlock()
	if err != nil {
		return err
	}
	for _, op := range ops {
		if err := stream.Send(&remotegpuv1.WatchOperationResponse{Operation: op}); err != nil {
			return err
		}
		if drop {
			return connect.NewError(connect.CodeUnavailable, "the node stops")
		}
		if op.GetState() != running {
			return nil
		}
	}
	close(f.pending)
	<-ctx.Done()
	return ctx.Err()
}

func (f *fake) GetOperation(_ context.Context, r *remotegpuv1.GetOperationRequest) (*remotegpuv1.GetOperationResponse, error) {
	return &remotegpuv1.GetOperationResponse{Operation: f.ops[0]}, f.got(r)
}

func (f *fake) ListOperations(_ context.Context, r *remotegpuv1.ListOperationsRequest) (*remotegpuv1.ListOperationsResponse, error) {
	if f.total == 0 {
		return &remotegpuv1.ListOperationsResponse{Operations: f.ops}, f.got(r)
	}
	page, next := f.page(r.GetPageSize(), r.GetPageToken())
	return &remotegpuv1.ListOperationsResponse{Operations: slices.Repeat(f.ops[:1], page), NextPageToken: next}, f.got(r)
}

func (f *fake) CancelOperation(_ context.Context, r *remotegpuv1.CancelOperationRequest) (*remotegpuv1.CancelOperationResponse, error) {
	f.mu.Lock()
	if f.cancelled != nil {
		f.ops = f.cancelled
	}
	f.mu.Unlock()
	return &remotegpuv1.CancelOperationResponse{Operation: f.ops[0]}, f.got(r)
}

func (f *fake) ListImages(_ context.Context, r *remotegpuv1.ListImagesRequest) (*remotegpuv1.ListImagesResponse, error) {
	return &remotegpuv1.ListImagesResponse{Images: []*remotegpuv1.Image{{
		Name: "docker.io/remotegpu/desktop-base:latest", Digest: "sha256:0123456789abcdef", SizeBytes: 3 << 29,
		Platform: "linux/amd64", UsedBy: []string{"01ENV"}, UpdatedAt: ago(72 * time.Hour),
	}}}, f.got(r)
}

func (f *fake) BuildImage(_ context.Context, r *remotegpuv1.BuildImageRequest) (*remotegpuv1.BuildImageResponse, error) {
	return &remotegpuv1.BuildImageResponse{Operation: operation(running, "", 0, 0)}, f.got(r)
}

func (f *fake) DeleteImage(_ context.Context, r *remotegpuv1.DeleteImageRequest) (*remotegpuv1.DeleteImageResponse, error) {
	if err := f.none(r.GetReference()); err != nil {
		return nil, err
	}
	return &remotegpuv1.DeleteImageResponse{Name: "docker.io/" + r.GetReference()}, f.got(r)
}

func (f *fake) ListPortMappings(_ context.Context, r *remotegpuv1.ListPortMappingsRequest) (*remotegpuv1.ListPortMappingsResponse, error) {
	if r.GetExternalPort() == 10009 { // it was held twice, and is not now
		response, err := &remotegpuv1.ListPortMappingsResponse{}, f.got(r)
		switch {
		case !r.GetIncludeReleased():
		case r.GetPageToken() == "":
			response.PortMappings, response.NextPageToken = []*remotegpuv1.PortMapping{{Id: "01OLD", CreatedAt: ago(time.Hour)}}, "more"
		default:
			response.PortMappings = []*remotegpuv1.PortMapping{{Id: "01PORT", CreatedAt: ago(time.Minute)}}
		}
		return response, err
	}
	if r.GetExternalPort() == 10081 { // another project has it
		response, err := &remotegpuv1.ListPortMappingsResponse{}, f.got(r)
		if r.GetProject() == "" || r.GetProject() == "other" {
			response.PortMappings = []*remotegpuv1.PortMapping{{Id: "01OTHER", Project: "other", ExternalPort: 10081}}
		}
		return response, err
	}
	m := proto.CloneOf(f.env.GetPortMappings()[0])
	m.Status, m.CreatedAt = remotegpuv1.PortMappingStatus_PORT_MAPPING_STATUS_ACTIVE, ago(time.Minute)
	m.Environment, m.EnvironmentName, m.Project = "01ENV", "demo", "default"
	return &remotegpuv1.ListPortMappingsResponse{PortMappings: []*remotegpuv1.PortMapping{m}}, f.got(r)
}

func pool() *remotegpuv1.PortPool {
	return &remotegpuv1.PortPool{
		ServiceType: remotegpuv1.ServiceType_SERVICE_TYPE_SSH, FirstPort: 22000, LastPort: 22999,
		DefaultInternalPort: 22, InUse: 1, Free: 999,
	}
}

func (f *fake) ListPortPools(_ context.Context, r *remotegpuv1.ListPortPoolsRequest) (*remotegpuv1.ListPortPoolsResponse, error) {
	return &remotegpuv1.ListPortPoolsResponse{Pools: []*remotegpuv1.PortPool{pool()}}, f.got(r)
}

func (f *fake) UpdatePortPool(_ context.Context, r *remotegpuv1.UpdatePortPoolRequest) (*remotegpuv1.UpdatePortPoolResponse, error) {
	return &remotegpuv1.UpdatePortPoolResponse{Pool: pool(), Warnings: []string{"the pools overlap"}}, f.got(r)
}

func (f *fake) GetDesktop(_ context.Context, r *remotegpuv1.GetDesktopRequest) (*remotegpuv1.GetDesktopResponse, error) {
	err := f.got(r)
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := f.desktops[0]
	if len(f.desktops) > 1 {
		f.desktops = f.desktops[1:]
	}
	return answer, err
}

func (f *fake) CreateDesktopSession(_ context.Context, r *remotegpuv1.CreateDesktopSessionRequest) (*remotegpuv1.CreateDesktopSessionResponse, error) {
	return &remotegpuv1.CreateDesktopSessionResponse{Url: "https://gpu1:7443/d/01ENV#t=abc", Token: "abc"}, f.got(r)
}

func (f *fake) GetScreenshot(_ context.Context, r *remotegpuv1.GetScreenshotRequest) (*remotegpuv1.GetScreenshotResponse, error) {
	png := f.picture
	if png == nil {
		png = bytes.Repeat([]byte("png"), 2<<20)
	}
	return &remotegpuv1.GetScreenshotResponse{Png: png, Width: 1920, Height: 1080}, f.got(r)
}

func (f *fake) Reconcile(_ context.Context, r *remotegpuv1.ReconcileRequest) (*remotegpuv1.ReconcileResponse, error) {
	return &remotegpuv1.ReconcileResponse{Findings: f.findings}, f.got(r)
}

func (f *fake) DiffFirewall(_ context.Context, r *remotegpuv1.DiffFirewallRequest) (*remotegpuv1.DiffFirewallResponse, error) {
	var text strings.Builder
	for _, d := range f.differs {
		text.WriteString("- " + d.GetTable() + " " + d.GetRule() + "\n")
	}
	return &remotegpuv1.DiffFirewallResponse{Differences: f.differs, Text: text.String()}, f.got(r)
}

func (f *fake) GetFirewall(_ context.Context, r *remotegpuv1.GetFirewallRequest) (*remotegpuv1.GetFirewallResponse, error) {
	return &remotegpuv1.GetFirewallResponse{Rules: "*nat\n:RGPU-DNAT - [0:0]\nCOMMIT\n"}, f.got(r)
}

func (f *fake) GetNodeInfo(_ context.Context, r *remotegpuv1.GetNodeInfoRequest) (*remotegpuv1.GetNodeInfoResponse, error) {
	return &remotegpuv1.GetNodeInfoResponse{Node: &remotegpuv1.Node{
		DiskQuota: f.quota, Firewall: f.repairs,
		Id: "01NODE", Name: "gpu1", Version: "v0.1.0", Os: "Debian GNU/Linux 12 (bookworm)", Kernel: "6.1.0", Architecture: "amd64",
		Cpus: 8, MemoryBytes: 32 << 30, Cgroup: "v2", AddressRange: "10.88.0.0/16",
		Containerd:   &remotegpuv1.Containerd{Address: "/run/containerd/containerd.sock", Version: "1.6.20", Namespace: "remotegpu", Snapshotter: "overlayfs"},
		Environments: map[string]int32{"running": 2, "error": 1},
		Conditions:   []*remotegpuv1.NodeCondition{{Reason: "BUILDKIT_UNAVAILABLE", Message: "BuildKit does not answer", Hint: "start buildkitd"}},
	}}, f.got(r)
}
