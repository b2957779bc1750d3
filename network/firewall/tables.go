package firewall

import (
	"context"
	"fmt"
	"strings"

	"github.com/coreos/go-iptables/iptables"

	"github.com/remotegpu/remotegpu/internal/hostexec"
)

// Tables are the rules of one address family where packets are filtered: the
// kernel's, by the programs of iptables, or what stands for them in tests
// (firewalltest.Tables). A failure is a *hostexec.Error with the exit code and
// the words of the program, or an *iptables.Error.
type Tables interface {
	// Save returns all rules as iptables-save prints them.
	Save(ctx context.Context) ([]byte, error)
	// Restore applies a script as iptables-restore --noflush does: each table in
	// it whole, or neither that one nor those behind it.
	Restore(ctx context.Context, script string) error
	// NewChain makes an empty chain. One of that name is an error.
	NewChain(ctx context.Context, table, chain string) error
}

// standIn is the backend of Tables that are not the kernel's.
const standIn = "stand-in"

// kernelTables are Tables of the kernel's.
type kernelTables struct {
	path string             // of iptables or ip6tables, beside its twins
	ipt  *iptables.IPTables // nil: no chain is made by NewChain
}

func (p kernelTables) Save(ctx context.Context) ([]byte, error) {
	return hostexec.Run(ctx, nil, p.path+"-save")
}

func (p kernelTables) Restore(ctx context.Context, script string) error {
	_, err := hostexec.Run(ctx, strings.NewReader(script), p.path+"-restore", fmt.Sprintf("--wait=%d", lockWait), "--noflush")
	return err
}

func (p kernelTables) NewChain(_ context.Context, table, chain string) error {
	return p.ipt.NewChain(table, chain)
}
