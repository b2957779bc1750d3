package columns

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"google.golang.org/protobuf/types/known/durationpb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/gen/remotegpu/v1/remotegpuv1connect"
	"github.com/remotegpu/remotegpu/test/bench/sandbox"
)

// remoteGPU is our own node through its API on the unix socket.
type remoteGPU struct {
	config       *Config
	engine       *engine
	daemon       *sandbox.Daemon
	http         *http.Client
	environments remotegpuv1connect.EnvironmentServiceClient
}

func (r *remoteGPU) Name() string { return RemoteGPU }

func (r *remoteGPU) Missing() string {
	lacks := r.config.missing(r.config.engine()...)
	if info, err := os.Stat(r.config.Remotegpud); err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
		lacks = strings.TrimPrefix(lacks+", "+r.config.Remotegpud+" is not built (make build)", ", ")
	}
	return lacks
}

func (r *remoteGPU) Versions(ctx context.Context) []string { return r.config.versions(ctx) }

func (r *remoteGPU) Start(ctx context.Context) error {
	dir, err := r.config.subdir(RemoteGPU)
	if err != nil {
		return err
	}
	if r.engine, err = startEngine(ctx, r.config, RemoteGPU); err != nil {
		return err
	}
	if err := r.engine.load(ctx, r.config, r.config.Name); err != nil {
		return err
	}
	file, api, err := r.writeNodeConfig(dir)
	if err != nil {
		return err
	}
	r.daemon, err = sandbox.StartDaemon(r.engine.host.NS, filepath.Join(dir, "log"), r.config.environ(),
		r.config.Remotegpud, "--config", file)
	if err != nil {
		return err
	}
	r.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", api)
		},
	}}
	r.environments = remotegpuv1connect.NewEnvironmentServiceClient(
		connect.NewClient(connecthttp.NewTransport(r.http, "http://node")))
	return r.daemon.Await(ctx, time.Minute, func(ctx context.Context) error {
		_, err := r.environments.ListEnvironments(ctx, &remotegpuv1.ListEnvironmentsRequest{})
		return err
	})
}

func (r *remoteGPU) Stop() {
	if r.http != nil {
		r.http.CloseIdleConnections()
	}
	if r.daemon != nil {
		r.daemon.Stop()
	}
	r.engine.stop()
}

// wait is how long a call may take to see its operation done.
var wait = durationpb.New(time.Minute)

func (r *remoteGPU) Tail() string { return r.daemon.Tail() }

func (r *remoteGPU) Create(ctx context.Context, id string) (*Instance, error) {
	answer, err := r.environments.CreateEnvironment(ctx, &remotegpuv1.CreateEnvironmentRequest{
		Name: id,
		Spec: &remotegpuv1.EnvironmentSpec{
			Image:      ImageName,
			PullPolicy: remotegpuv1.PullPolicy_PULL_POLICY_NEVER,
			Ports: []*remotegpuv1.PortRequest{{
				ServiceType:  remotegpuv1.ServiceType_SERVICE_TYPE_CUSTOM,
				InternalPort: ContainerPort,
			}},
		},
		Wait: wait,
	})
	if err != nil {
		return nil, fmt.Errorf("create environment: %w", err)
	}
	made := answer.GetEnvironment()
	if state := made.GetState(); state != remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_RUNNING {
		return nil, fmt.Errorf("create environment: it is %s", state)
	}
	if len(made.GetPortMappings()) != 1 {
		return nil, fmt.Errorf("create environment: it has %d port mappings", len(made.GetPortMappings()))
	}
	return &Instance{
		ID:    made.GetId(),
		Host:  r.engine.host,
		Port:  int(made.GetPortMappings()[0].GetExternalPort()),
		Spans: operationSpans(answer.GetOperation()),
	}, nil
}

func (r *remoteGPU) Exec(ctx context.Context, instance *Instance) error {
	answer, err := r.environments.RunCommand(ctx, &remotegpuv1.RunCommandRequest{
		Environment: instance.ID, Argv: []string{truePath},
	})
	if err != nil {
		return fmt.Errorf("run command: %w", err)
	}
	if code := answer.GetExitCode(); code != 0 {
		return fmt.Errorf("run command: it ended with code %d: %s", code, answer.GetStderr())
	}
	return nil
}

func (r *remoteGPU) Remove(ctx context.Context, instance *Instance) error {
	// One call that does what the peers need two for: stops a running
	// environment with the timeout, then deletes it.
	answer, err := r.environments.DeleteEnvironment(ctx, &remotegpuv1.DeleteEnvironmentRequest{
		Environment: instance.ID, Force: true, Timeout: durationpb.New(stopSeconds * time.Second), Wait: wait,
	})
	if err != nil {
		return fmt.Errorf("delete environment: %w", err)
	}
	if state := answer.GetOperation().GetState(); state != remotegpuv1.OperationState_OPERATION_STATE_SUCCEEDED {
		return fmt.Errorf("delete environment: operation is %s", state)
	}
	instance.Removal = operationSpans(answer.GetOperation())
	return nil
}

// spanPrefix starts the keys of an operation's result that hold the time, in
// microseconds, which a part of it took.
const spanPrefix = "span."

func operationSpans(op *remotegpuv1.Operation) map[string]time.Duration {
	taken := map[string]time.Duration{}
	for key, value := range op.GetResult() {
		name, ok := strings.CutPrefix(key, spanPrefix)
		if !ok {
			continue
		}
		if micros, err := strconv.ParseInt(value, 10, 64); err == nil {
			taken[name] = time.Duration(micros) * time.Microsecond
		}
	}
	if created, started := op.GetCreatedAt(), op.GetStartedAt(); created != nil && started != nil {
		taken["(queued)"] = started.AsTime().Sub(created.AsTime())
	}
	return taken
}
