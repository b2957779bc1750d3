package firewall

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/remotegpu/remotegpu/internal/hostexec"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// The backends, as Backend names them.
const (
	nftBackend    = "nf_tables"
	legacyBackend = "legacy"
)

// findProgram returns the iptables program at path, or the first in PATH, as a
// name that stays with its backend: links of the distribution's alternatives,
// which somebody may turn, are followed.
func findProgram(path string) (string, error) {
	candidates := []string{path}
	if path == "" {
		candidates = []string{"iptables", "/usr/sbin/iptables", "/sbin/iptables"}
	}
	for _, candidate := range candidates {
		found, err := exec.LookPath(candidate)
		if err != nil {
			continue
		}
		if twin := missingTwin(found); twin != "" {
			return "", problem.New(problem.FirewallFailed, "%s is not there", twin).
				WithHint("Install the iptables package; the three programs must lie side by side.")
		}
		return settled(filepath.Clean(found)), nil
	}
	return "", problem.New(problem.FirewallFailed, "iptables is not installed").WithHint("Install the iptables package.")
}

// missingTwin is the first of the programs beside an iptables that is not
// there, or "".
func missingTwin(program string) string {
	for _, twin := range []string{"-save", "-restore"} {
		if _, err := exec.LookPath(program + twin); err != nil {
			return program + twin
		}
	}
	return ""
}

// settled follows links as long as they lead to a program with twins: not to
// the one binary with many names, which goes by what it is called.
func settled(program string) string {
	const links = 8
	for range links {
		target, err := os.Readlink(program)
		if err != nil {
			return program
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(program), target)
		}
		if missingTwin(target) != "" {
			return program
		}
		program = target
	}
	return program
}

// Backend tells which kernel interface iptables speaks: "nf_tables" or
// "legacy"; "stand-in" of Config.Tables.
func (f *Firewall) Backend(ctx context.Context) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.askBackend(ctx)
}

// askBackend does as Backend. The caller holds mu.
func (f *Firewall) askBackend(ctx context.Context) (string, error) {
	if f.backend != "" {
		return f.backend, nil
	}
	out, err := hostexec.Run(ctx, nil, f.v4.program, "--version")
	if err != nil {
		return "", failed("ask iptables for its version", err)
	}
	f.backend = legacyBackend // programs before 1.8 do not name it and have no other
	if strings.Contains(string(out), nftBackend) {
		f.backend = nftBackend
	}
	return f.backend, nil
}

// other is the family of the same rules in the backend that is not in use, nil
// when its programs are not there. The caller holds mu.
func (f *Firewall) other(ctx context.Context) (*family, error) {
	backend, err := f.askBackend(ctx)
	if err != nil || backend == standIn {
		return nil, err
	}
	name := "iptables-legacy"
	if backend == legacyBackend {
		name = "iptables-nft"
	}
	program := filepath.Join(filepath.Dir(f.v4.program), name)
	if found, _ := exec.LookPath(program); found == "" || missingTwin(program) != "" { // its absence is no error
		return nil, nil
	}
	other := *f.v4
	other.program, other.tables = program, kernelTables{path: program}
	other.own = func(_ context.Context, _ string, _ ruleset, change func() error) error { return change() }
	return &other, nil
}
