package columns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// goClient is the lower bound: the loop that a careful engineer writes first
// on the containerd client, one step after the other. What an honest node has,
// it has too: a network namespace, a bridge, an address and a published port
// per container, the default seccomp profile and a log file. Nothing is made
// ahead, nothing is left behind, nothing is left to a later moment but what
// the kernel itself defers.
//
// The bridge is each container's own, as the node's design has it, or one for
// all, as docker's and podman's is: that isolates less and spares the deletion
// of a bridge, which the kernel makes slow.
type goClient struct {
	config *Config
	name   string
	engine *engine
	client *containerd.Client
	net    *plainNetwork
	dir    string
	ahead  *aheadShims // nil: containerd starts each shim when it is needed
	warm   *warmer     // nil: the lock of process migrations is as cold as it is

	mu     sync.Mutex
	live   map[string]*plainContainer
	serial int
}

// plainContainer is a container of the loop.
type plainContainer struct {
	container containerd.Container
	task      containerd.Task
	exited    <-chan containerd.ExitStatus
	endpoint  *plainEndpoint
	port      int
	log       string
}

func (g *goClient) Name() string { return g.name }

func (g *goClient) Missing() string {
	if g.name == GoClientAhead && g.config.Containerd != 1 {
		return "containerd 2 starts its shims another way"
	}
	return g.config.missing(g.config.engine()...)
}

func (g *goClient) Versions(ctx context.Context) []string { return g.config.versions(ctx) }

func (g *goClient) Start(ctx context.Context) error {
	g.live = map[string]*plainContainer{}
	var err error
	if g.dir, err = g.config.subdir(g.name, "run"); err != nil {
		return err
	}
	if g.engine, err = startEngine(ctx, g.config, g.name); err != nil {
		return err
	}
	if err := g.engine.load(ctx, g.config, g.config.Name); err != nil {
		return err
	}
	if g.net, err = newPlainNetwork(ctx, g.config, g.engine.host.NS, g.dir, g.name == GoClientShared); err != nil {
		return err
	}
	if g.name == GoClientAhead {
		if g.ahead, err = newAheadShims(ctx, g.config, g.engine, g.dir); err != nil {
			return err
		}
	}
	if g.name == GoClientWarm {
		if g.warm, err = newWarmer(g.config); err != nil {
			return err
		}
	}
	g.client, err = containerd.New(g.engine.address, containerd.WithDefaultNamespace(g.config.Name))
	if err != nil {
		return fmt.Errorf("connect to containerd: %w", err)
	}
	return nil
}

func (g *goClient) Stop() {
	if g.client != nil {
		g.client.Close()
	}
	g.net.close()
	g.ahead.close()
	g.warm.close()
	g.engine.stop()
}

func (g *goClient) Tail() string { return g.engine.daemon.Tail() }

func (g *goClient) Create(ctx context.Context, id string) (*Instance, error) {
	ctx = namespaces.WithNamespace(ctx, g.config.Name)
	g.mu.Lock()
	g.serial++
	serial := g.serial
	g.mu.Unlock()
	made := &plainContainer{port: 20000 + serial%10000, log: filepath.Join(g.dir, id+".log")}
	spans := newSpans()
	defer g.warm.during()()
	if err := g.create(ctx, id, serial, made, spans); err != nil {
		return nil, errors.Join(err, g.remove(ctx, made, newSpans()))
	}
	g.mu.Lock()
	g.live[id] = made
	g.mu.Unlock()
	return &Instance{ID: id, Host: g.engine.host, Port: made.port, Spans: spans.taken}, nil
}

func (g *goClient) create(ctx context.Context, id string, serial int, made *plainContainer, spans *spans) error {
	var err error
	if made.endpoint, err = g.net.attach(serial); err != nil {
		return err
	}
	spans.end("network")
	var annotations map[string]string
	if g.ahead != nil {
		group, err := g.ahead.take(ctx)
		if err != nil {
			return err
		}
		annotations = map[string]string{groupAnnotation: group}
	}
	image, err := g.client.GetImage(ctx, ImageName)
	if err != nil {
		return fmt.Errorf("get image: %w", err)
	}
	made.container, err = g.client.NewContainer(ctx, id,
		containerd.WithImage(image),
		containerd.WithNewSnapshot(id, image),
		containerd.WithNewSpec(
			oci.WithImageConfig(image),
			oci.WithHostname(id),
			oci.WithAnnotations(annotations),
			oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: made.endpoint.netns}),
			oci.WithNoNewPrivileges,
			seccomp.WithDefaultProfile(),
		),
	)
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	spans.end("container")
	if err := g.start(ctx, made, spans); err != nil {
		return err
	}
	if err := g.net.publish(ctx, made.endpoint, made.port); err != nil {
		return err
	}
	spans.end("publish")
	return nil
}

// start makes the task and starts it.
func (g *goClient) start(ctx context.Context, made *plainContainer, spans *spans) error {
	var err error
	if made.task, err = made.container.NewTask(ctx, cio.LogFile(made.log)); err != nil {
		return fmt.Errorf("create task: %w", err)
	}
	// Asked for before the start, so that no exit is missed.
	if made.exited, err = made.task.Wait(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("wait for task: %w", err)
	}
	spans.end("task")
	if err := made.task.Start(ctx); err != nil {
		return fmt.Errorf("start task: %w", err)
	}
	spans.end("start")
	return nil
}

func (g *goClient) container(id string) *plainContainer {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.live[id]
}

func (g *goClient) Exec(ctx context.Context, instance *Instance) error {
	ctx = namespaces.WithNamespace(ctx, g.config.Name)
	defer g.warm.during()()
	made := g.container(instance.ID)
	spec, err := made.container.Spec(ctx)
	if err != nil {
		return fmt.Errorf("read spec: %w", err)
	}
	process := *spec.Process
	process.Args = []string{truePath}
	run, err := made.task.Exec(ctx, "exec", &process, cio.NullIO)
	if err != nil {
		return fmt.Errorf("add process: %w", err)
	}
	exited, err := run.Wait(ctx)
	if err != nil {
		return fmt.Errorf("wait for process: %w", err)
	}
	if err := run.Start(ctx); err != nil {
		return fmt.Errorf("start process: %w", err)
	}
	if code, _, err := (<-exited).Result(); err != nil || code != 0 {
		return fmt.Errorf("process ended with code %d: %w", code, err)
	}
	if _, err := run.Delete(ctx); err != nil {
		return fmt.Errorf("delete process: %w", err)
	}
	return nil
}

func (g *goClient) Remove(ctx context.Context, instance *Instance) error {
	ctx = namespaces.WithNamespace(ctx, g.config.Name)
	made := g.container(instance.ID)
	g.mu.Lock()
	delete(g.live, instance.ID)
	g.mu.Unlock()
	spans := newSpans()
	defer func() { instance.Removal = spans.taken }()
	err := g.remove(ctx, made, spans)
	if g.ahead != nil {
		go g.ahead.refill(context.WithoutCancel(ctx))
	}
	return err
}

// remove removes whatever is there of a container.
func (g *goClient) remove(ctx context.Context, made *plainContainer, spans *spans) error {
	ctx = context.WithoutCancel(ctx)
	var failures []error
	if made.task != nil {
		failures = append(failures, g.stop(ctx, made, spans))
	}
	if made.container != nil {
		if err := made.container.Delete(ctx, containerd.WithSnapshotCleanup); err != nil {
			failures = append(failures, fmt.Errorf("delete container: %w", err))
		}
		spans.end("container")
	}
	if made.endpoint != nil {
		failures = append(failures, g.net.withdraw(ctx, made.endpoint))
		spans.end("withdraw")
		failures = append(failures, g.net.detach(made.endpoint))
		spans.end("network")
	}
	if err := os.Remove(made.log); err != nil && !errors.Is(err, os.ErrNotExist) {
		failures = append(failures, fmt.Errorf("remove log: %w", err))
	}
	return errors.Join(failures...)
}

// stop ends the task: SIGTERM, SIGKILL when that was not enough.
func (g *goClient) stop(ctx context.Context, made *plainContainer, spans *spans) error {
	if made.exited != nil {
		if err := made.task.Kill(ctx, syscall.SIGTERM); err != nil {
			return fmt.Errorf("terminate task: %w", err)
		}
		select {
		case <-made.exited:
		case <-time.After(stopSeconds * time.Second):
			if err := made.task.Kill(ctx, syscall.SIGKILL); err != nil {
				return fmt.Errorf("kill task: %w", err)
			}
			<-made.exited
		}
	}
	spans.end("stop")
	if _, err := made.task.Delete(ctx, containerd.WithProcessKill); err != nil {
		return fmt.Errorf("delete task: %w", err)
	}
	spans.end("task")
	return nil
}

// spans takes the time between the ends of steps.
type spans struct {
	last  time.Time
	taken map[string]time.Duration
}

func newSpans() *spans { return &spans{last: time.Now(), taken: map[string]time.Duration{}} }

func (s *spans) end(step string) {
	now := time.Now()
	s.taken[step] = now.Sub(s.last)
	s.last = now
}

// lines joins lines of a rule file.
func lines(lines ...string) string { return strings.Join(lines, "\n") + "\n" }
