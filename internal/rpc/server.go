package rpc

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectproto"
	"connectrpc.com/grpcreflect/v2"
	"connectrpc.com/validate"

	"github.com/remotegpu/remotegpu/gen/remotegpu/v1/remotegpuv1connect"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// MaxRequestBytes is the size of the largest request that is read.
const MaxRequestBytes = 4 << 20

// compressFrom is the size in bytes from which an answer is compressed, when
// its caller understands that: smaller ones fit into a packet or two anyway.
const compressFrom = 2 << 10

// Config is what the services work with. All fields are required.
type Config struct {
	Manager    *runtime.Manager
	Operations Operations
	Ports      Ports
	Desktops   Desktops
	Sessions   Sessions
	Node       NodeInfo
	Firewall   Firewall
	NodeName   string
	Log        *slog.Logger
}

// Operations shows operations; *operation.Queue and the store implement it.
type Operations interface {
	// Get returns one, NotFound.
	Get(ctx context.Context, id string) (*operation.Operation, error)
	// List returns operations, newest first, and the next cursor.
	List(ctx context.Context, filter operation.Filter) ([]*operation.Operation, string, error)
	// Wait returns the operation once it is done, or as it is when ctx ends
	// together with ctx's error.
	Wait(ctx context.Context, id string) (*operation.Operation, error)
	// Watch calls send with the operation as it is and with each change, and
	// returns when it is done, ctx ends or send fails.
	Watch(ctx context.Context, id string, send func(*operation.Operation) error) error
	// Cancel asks it to stop, NotFound.
	Cancel(ctx context.Context, id string) (*operation.Operation, error)
}

// Ports shows and configures the port pool.
type Ports interface {
	Usage(ctx context.Context) ([]port.Usage, error)
	ReviewOf(service port.Service) []string
	SetRange(ctx context.Context, service port.Service, first, last uint16, ifRevision int64) (port.Usage, error)
}

// Desktops looks at desktops.
type Desktops interface {
	// Readiness tells how far a desktop is.
	Readiness(ctx context.Context, envID string) (Readiness, error)
	// AwaitDrawn blocks until it has drawn or ctx ends.
	AwaitDrawn(ctx context.Context, envID string) error
	// Screenshot returns a PNG and its size in pixels.
	Screenshot(ctx context.Context, envID string) (png []byte, width, height int, err error)
}

// Readiness is how far a desktop is.
type Readiness struct {
	Connectable bool
	Drawn       bool
	Width       int // pixels
	Height      int // pixels
	Colours     int // of the last frame, capped at 4096
	Detail      string
}

// Sessions makes tokens and addresses of desktops; the gateway implements it.
type Sessions interface {
	// URL is the page of a desktop, without a token.
	URL(envID string) string
	// Session makes a token that opens connections until it expires.
	Session(envID string, viewOnly bool, ttl time.Duration) (url, token string, expires time.Time, err error)
}

// NewHandler returns the handler of the whole API: Connect, gRPC and gRPC-Web,
// with reflection and health.
func NewHandler(cfg Config) http.Handler {
	server := connect.NewServer(errorInterceptor(cfg.Log), validate.NewServerInterceptor())
	services := &services{cfg}
	remotegpuv1connect.RegisterEnvironmentServiceHandler(server, (*environmentService)(services))
	remotegpuv1connect.RegisterOperationServiceHandler(server, (*operationService)(services))
	remotegpuv1connect.RegisterImageServiceHandler(server, (*imageService)(services))
	remotegpuv1connect.RegisterPortServiceHandler(server, (*portService)(services))
	remotegpuv1connect.RegisterDNSServiceHandler(server, (*dnsService)(services))
	remotegpuv1connect.RegisterDesktopServiceHandler(server, (*desktopService)(services))
	remotegpuv1connect.RegisterNodeServiceHandler(server, (*nodeService)(services))
	remotegpuv1connect.RegisterVolumeServiceHandler(server, (*volumeService)(services))
	remotegpuv1connect.RegisterSnapshotServiceHandler(server, (*snapshotService)(services))
	remotegpuv1connect.RegisterGPUServiceHandler(server, (*gpuService)(services))
	registerHealth(server)
	grpcreflect.Register(server)
	mux := http.NewServeMux()
	connecthttp.Mount(mux, server, connecthttp.WithReadMaxBytes(MaxRequestBytes), connecthttp.WithCompressMinBytes(compressFrom),
		connecthttp.WithCodecs(connectproto.NewBinaryCodec(), newJSONCodec()))
	return mux
}

type services struct{ cfg Config }

type (
	environmentService services
	operationService   services
	imageService       services
	portService        services
	desktopService     services
	nodeService        services
)
