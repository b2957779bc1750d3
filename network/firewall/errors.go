package firewall

import (
	"errors"
	"strings"

	"github.com/coreos/go-iptables/iptables"

	"github.com/remotegpu/remotegpu/internal/hostexec"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// exitLocked is the exit code of iptables, -save and -restore for a lock they
// did not get (RESOURCE_PROBLEM in xtables.h).
const exitLocked = 4

func isLocked(err error) bool {
	if e, ok := errors.AsType[*hostexec.Error](err); ok {
		// The nft variant uses the same code for any rule it cannot commit.
		return e.Code == exitLocked && !strings.Contains(e.Stderr, "RULE_") && !strings.Contains(e.Stderr, "CHAIN_") && !lacksModule(e.Stderr)
	}
	if e, ok := errors.AsType[*iptables.Error](err); ok {
		return e.ExitStatus() == exitLocked
	}
	return false
}

// lacksModule tells whether iptables says that the kernel lacks something.
func lacksModule(said string) bool {
	for _, part := range []string{"load match", "missing kernel module", "Extension", "not supported", "can't initialize iptables table"} {
		if strings.Contains(said, part) {
			return true
		}
	}
	return false
}

// failed is a FIREWALL_FAILED problem with the hint that fits what iptables
// said.
func failed(what string, err error) error {
	p := problem.New(problem.FirewallFailed, "%s", what).WithCause(err)
	said := err.Error()
	switch {
	case isLocked(err):
		return p.WithHint("Another program holds the xtables lock; find it with: lsof /run/xtables.lock")
	case strings.Contains(said, "ermission denied"), strings.Contains(said, "not permitted"):
		return p.WithHint("remotegpud needs root (CAP_NET_ADMIN) to change the host's packet filter.")
	case lacksModule(said):
		return p.WithHint("The kernel lacks a netfilter module; needed are conntrack, nat, addrtype, comment, limit, rpfilter, REJECT: " +
			"try modprobe -a xt_conntrack xt_nat xt_addrtype xt_comment xt_limit ipt_rpfilter ipt_REJECT xt_MASQUERADE iptable_raw")
	case strings.Contains(said, "incompatible"):
		return p.WithHint("A table holds nftables rules that iptables cannot read; see: nft list ruleset")
	}
	return p
}
