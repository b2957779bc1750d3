package containerd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// stranger is another containerd of the host, or another namespace of ours, that
// has a container of an id which is asked about.
type stranger struct {
	pid       int    // of its shim; 0: that has died
	of        string // who it is, for people
	namespace string // of containerd
	cgroup    string // of the container; "" while it is not known
}

func (s *stranger) String() string {
	who := fmt.Sprintf("another containerd (%s, namespace %s)", s.of, s.namespace)
	if s.pid == 0 {
		return who
	}
	return fmt.Sprintf("a shim of %s, pid %d,", who, s.pid)
}

// strangers are those who have a container of an id, too. A host's containerds
// share the cgroups of their containers where they are told the same parent, and
// what runtimes know of the containers of namespaces with the same name. Nodes
// whose database was copied give one id to two containers.
func (e *Engine) strangers(id string) ([]*stranger, error) {
	var found []*stranger
	err := eachProcess(func(pid int, args []string) {
		if isShim(args) && after(args, "-id") == id && !e.isOurShim(args) {
			found = append(found, &stranger{pid: pid, of: after(args, "-address"), namespace: after(args, "-namespace")})
		}
	})
	if err != nil {
		return nil, err
	}
	states, err := filepath.Glob(filepath.Join(runtimeRoot, "*", id, "state.json"))
	if err != nil {
		return nil, fmt.Errorf("look for states of runtimes: %w", err)
	}
	for _, file := range states {
		namespace := filepath.Base(filepath.Dir(filepath.Dir(file)))
		bundle, cgroup, err := readState(file)
		if err != nil {
			return nil, err
		}
		served := false
		for _, s := range found {
			if s.namespace == namespace {
				s.cgroup, served = cgroup, true
			}
		}
		// Its shim may have died, and the process lives: the containerd may be down,
		// and clears up when it is back.
		if socket := shimSocket(bundle); !served && socket != "" && !e.isOurSocket(id, socket) {
			found = append(found, &stranger{of: bundle, namespace: namespace, cgroup: cgroup})
		}
	}
	return found, nil
}

// inState is who else has what the runtime knows of a container; nil: nobody.
func (e *Engine) inState(id string) (*stranger, error) {
	return e.find(id, func(s *stranger) bool { return s.namespace == e.cfg.Namespace })
}

// inCgroup is who else has a container's cgroup; nil: nobody.
func (e *Engine) inCgroup(id string) (*stranger, error) {
	return e.find(id, func(s *stranger) bool { return s.cgroup == "" || s.cgroup == e.cgroup(id) })
}

func (e *Engine) find(id string, which func(*stranger) bool) (*stranger, error) {
	all, err := e.strangers(id)
	if i := slices.IndexFunc(all, which); i >= 0 {
		return all[i], nil
	}
	return nil, err
}

// apart refuses to start a container in the cgroup of somebody else's.
func (e *Engine) apart(id string) error {
	if len(e.cgroupDirs(id)) == 0 {
		return nil
	}
	other, err := e.inCgroup(id)
	if err != nil || other == nil {
		return err
	}
	return problem.New(problem.ProcessStartFailed, "%s runs container %s in cgroup %s", other, id, e.cgroup(id)).
		WithHint("two nodes of this host have the same environment, as after a copy of a database: delete it in one of them, and give each a [containerd] cgroup of its own")
}

// leftAlone says whether a container's cgroup is somebody else's, which is told.
func (e *Engine) leftAlone(ctx context.Context, id string) (bool, error) {
	other, err := e.inCgroup(id)
	if err != nil || other == nil {
		return false, err
	}
	e.cfg.Log.WarnContext(ctx, "a cgroup is left alone: it is not this node's", "container", id, "cgroup", e.cgroup(id), "owner", other.String())
	return true, nil
}

// isOurShim says whether a shim with arguments serves our namespace of our
// containerd, which may be called by another path here.
func (e *Engine) isOurShim(args []string) bool {
	if after(args, "-namespace") != e.cfg.Namespace {
		return false
	}
	address := after(args, "-address")
	return address == e.address() || address != "" && resolved(address) == resolved(e.address())
}

// address is the path of containerd's socket.
func (e *Engine) address() string { return strings.TrimPrefix(e.cfg.Address, "unix://") }

func resolved(path string) string {
	if followed, err := filepath.EvalSymlinks(path); err == nil {
		return followed
	}
	return filepath.Clean(path)
}

// isOurSocket says whether a socket is that of the shim of a container of ours: all
// of a host's are called by the hash of their containerd's address, namespace and
// id (CreateSocketAddress of containerd's pkg/shim).
func (e *Engine) isOurSocket(id, socket string) bool {
	for _, address := range []string{e.address(), resolved(e.address())} {
		sum := sha256.Sum256([]byte(filepath.Join(address, e.cfg.Namespace, id)))
		if filepath.Base(socket) == hex.EncodeToString(sum[:]) {
			return true
		}
	}
	return false
}

// readState reads what runc keeps of a container: the directory that it was made
// from, and its cgroup. Both are "" when they are not known.
func readState(file string) (bundle, cgroup string, err error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return "", "", nil
	}
	if err != nil {
		return "", "", fmt.Errorf("read state of a runtime: %w", err)
	}
	var state struct {
		Config struct {
			Labels  []string `json:"labels"`
			Cgroups struct {
				Path string `json:"path"`
			} `json:"cgroups"`
		} `json:"config"`
	}
	if err := json.Unmarshal(text, &state); err != nil {
		return "", "", nil //nolint:nilerr // a runtime that was killed has written half of it
	}
	for _, label := range state.Config.Labels {
		if dir, is := strings.CutPrefix(label, "bundle="); is {
			bundle = dir
		}
	}
	return bundle, state.Config.Cgroups.Path, nil
}

// shimSocket is where the shim of a bundle listens: what the file address says, or
// bootstrap.json since containerd 2. "" when the bundle has gone, or its shim never
// served.
func shimSocket(bundle string) string {
	if bundle == "" {
		return ""
	}
	if text, err := os.ReadFile(filepath.Join(bundle, "bootstrap.json")); err == nil {
		var bootstrap struct {
			Address string `json:"address"`
		}
		if json.Unmarshal(text, &bootstrap) == nil && bootstrap.Address != "" {
			return bootstrap.Address
		}
	}
	text, err := os.ReadFile(filepath.Join(bundle, "address"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// Shims are the shims that serve a namespace of the containerd at an address, by
// pid. It takes no containerd.
func Shims(address, namespace string) ([]int, error) {
	e := Engine{cfg: Config{Address: address, Namespace: namespace}}
	var pids []int
	err := eachProcess(func(pid int, args []string) {
		if isShim(args) && e.isOurShim(args) {
			pids = append(pids, pid)
		}
	})
	return pids, err
}
