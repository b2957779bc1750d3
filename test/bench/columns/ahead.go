package columns

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// groupAnnotation names the group of a container: containerd's runc shim
// serves all containers of a group, and finds a shim of it that runs already by
// the address of its socket. A group of one container, whose shim was started
// before the container is made, is a shim started ahead. ADR 0027 says what
// that assumes of containerd, and why the product does not do it.
const groupAnnotation = "io.containerd.runc.v2.group"

// aheadShims starts shims before they are needed.
type aheadShims struct {
	config *Config
	engine *engine
	dir    string
	ready  chan string // groups whose shim runs
	failed chan error  // why one does not

	mu     sync.Mutex // of a start
	serial int
	logs   []*os.File
}

// aheadCount is how many are kept ready; aheadLimit how many may be, and may
// have failed to be, at most.
const (
	aheadCount = 2
	aheadLimit = 256
)

func newAheadShims(ctx context.Context, config *Config, engine *engine, dir string) (*aheadShims, error) {
	a := &aheadShims{config: config, engine: engine, dir: dir, ready: make(chan string, aheadLimit), failed: make(chan error, aheadLimit)}
	for range aheadCount {
		if err := a.add(ctx); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// take returns a group with a shim; while there is none it waits for one that
// is being started.
func (a *aheadShims) take(ctx context.Context) (string, error) {
	select {
	case group := <-a.ready:
		return group, nil
	case err := <-a.failed:
		return "", err
	case <-ctx.Done():
		return "", fmt.Errorf("wait for a shim: %w", context.Cause(ctx))
	}
}

// refill starts one for each that was taken, in the pause after a life.
func (a *aheadShims) refill(ctx context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.add(ctx); err != nil {
		a.failed <- err
	}
}

// add starts one as containerd would for a container of the group.
func (a *aheadShims) add(ctx context.Context) error {
	a.serial++
	group := fmt.Sprintf("ahead-%d", a.serial)
	bundle := filepath.Join(a.dir, group)
	if err := os.Mkdir(bundle, 0o700); err != nil {
		return fmt.Errorf("make bundle of shim: %w", err)
	}
	spec, err := json.Marshal(specs.Spec{Version: "1.0.2", Annotations: map[string]string{groupAnnotation: group}})
	if err != nil {
		return fmt.Errorf("encode spec of shim: %w", err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), spec, 0o600); err != nil {
		return fmt.Errorf("write spec of shim: %w", err)
	}
	// containerd reads a shim's log from a pipe in its bundle.
	pipe := filepath.Join(bundle, "log")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		return fmt.Errorf("make log of shim: %w", err)
	}
	log, err := os.OpenFile(pipe, os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open log of shim: %w", err)
	}
	a.logs = append(a.logs, log)
	cmd := exec.CommandContext(ctx, a.config.program("containerd-shim-runc-v2"),
		"-namespace", a.config.Name, "-address", a.engine.address,
		"-publish-binary", a.config.program("containerd"), "-id", group, "start")
	cmd.Dir = bundle
	cmd.Env = a.config.environ("TTRPC_ADDRESS="+a.engine.address+".ttrpc", "GRPC_ADDRESS="+a.engine.address,
		"NAMESPACE="+a.config.Name, "GOMAXPROCS=2", "MAX_SHIM_VERSION=2")
	var said strings.Builder
	cmd.Stderr = &said
	if err := a.engine.host.NS.Do(cmd.Start); err != nil {
		return fmt.Errorf("start shim: %w", err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("start shim: %w: %s", err, said.String())
	}
	a.ready <- group
	return nil
}

func (a *aheadShims) close() {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, log := range a.logs {
		log.Close()
	}
}
