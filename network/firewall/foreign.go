package firewall

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/remotegpu/remotegpu/internal/hostexec"
	"github.com/remotegpu/remotegpu/network/firewall/nft"
	"github.com/remotegpu/remotegpu/network/port"
)

// legacyTables names the tables of the legacy backend that the kernel has in
// the calling thread's network namespace. Asking iptables-legacy for one that is
// not there would make it.
const (
	legacyTables  = "/proc/thread-self/net/ip_tables_names"
	legacyTables6 = "/proc/thread-self/net/ip6_tables_names"
)

// Foreign tells which host ports rules of other tools lead elsewhere, in both
// backends and in tables of nftables: no program has them bound, so nobody else
// finds them. Rules of Docker, Podman and CNI's portmap, node ports of
// Kubernetes, forwards of firewalld, and what an administrator wrote are meant,
// not those for addresses that are not the host's.
func (f *Firewall) Foreign(ctx context.Context) ([]port.Span, error) {
	f.looking.Lock()
	defer f.looking.Unlock()
	backend, err := f.Backend(ctx)
	if err != nil {
		return nil, err
	}
	local, programs, now := localAddresses(), f.savePrograms(), mark{}
	if backend == nftBackend && len(programs) == 1 { // all rules are nf_tables'
		now = generationMark()
	}
	if now.known && now == f.seen.spans && slices.Equal(local, f.seen.local) {
		return slices.Clone(f.seen.spansFound), nil
	}
	found, err := f.lookForForeign(ctx, local, programs)
	if err != nil {
		now = mark{}
	}
	f.seen.spans, f.seen.local, f.seen.spansFound = now, local, slices.Clone(found)
	return found, err
}

// lookForForeign is Foreign of the host's addresses and what lists its rules.
func (f *Firewall) lookForForeign(ctx context.Context, local []netip.Addr, programs []string) ([]port.Span, error) {
	var found []port.Span
	for _, save := range programs {
		var out []byte
		if err := retry(ctx, func() (err error) {
			out, err = hostexec.Run(ctx, nil, save, "-t", "nat")
			return err
		}); err != nil {
			return nil, failed("read the rules of other tools", err)
		}
		found = append(found, f.foreignSpans(out, local)...)
	}
	if f.wantsV6() && f.hasV6() {
		out, err := hostexec.Run(ctx, nil, f.v6.program+"-save", "-t", "nat")
		if err != nil {
			f.cfg.Log.DebugContext(ctx, "rules of IPv6 cannot be read", "error", err)
		}
		found = append(found, f.foreignSpans(out, local)...)
	}
	native, err := f.foreignNative(ctx, local)
	return append(found, native...), err
}

// foreignNative are the host ports that tables of nftables lead elsewhere.
func (f *Firewall) foreignNative(ctx context.Context, local []netip.Addr) (found []port.Span, err error) {
	translations, err := nft.Translations(f.wantsV6(), func(to netip.Prefix) bool { return isLocal(to, local) })
	if errors.Is(err, nft.ErrTooMany) {
		f.cfg.Log.WarnContext(ctx, "not all ports that rules of nftables use are known", "error", err)
	} else if err != nil {
		return nil, failed("read the rules of other tools", err)
	}
	for _, t := range translations {
		rule := fmt.Sprintf("chain %s of the nftables table %s %s", t.Chain, t.Family, t.Table)
		for _, protocol := range portProtocols {
			if protocol == port.TCP && t.TCP || protocol == port.UDP && t.UDP {
				found = append(found, port.Span{Protocol: protocol, First: t.First, Last: t.Last, Rule: rule})
			}
		}
	}
	return found, nil
}

// foreignSpans are the host ports that the rules which iptables-save printed lead
// elsewhere, but for ours.
func (f *Firewall) foreignSpans(saved []byte, local []netip.Addr) (found []port.Span) {
	for chain, rules := range parse(saved)["nat"] {
		if f.v4.prefixed(chain) {
			continue
		}
		for _, rule := range rules {
			found = append(found, foreignSpans(rule, local)...)
		}
	}
	return found
}

// savePrograms are the iptables-save of each backend that may have rules.
func (f *Firewall) savePrograms() []string {
	programs := []string{f.v4.program + "-save"}
	other := map[string]string{"nf_tables": "iptables-legacy-save", "legacy": "iptables-nft-save"}
	backend := "legacy"
	resolved, err := filepath.EvalSymlinks(f.v4.program)
	if err != nil || strings.Contains(resolved, "nft") {
		backend = "nf_tables"
	}
	twin := filepath.Join(filepath.Dir(f.v4.program), other[backend])
	if _, err := exec.LookPath(twin); err != nil {
		return programs // there is one backend only
	}
	if backend == "nf_tables" {
		tables, err := os.ReadFile(legacyTables)
		if err != nil || !strings.Contains(string(tables), "nat") {
			return programs
		}
	}
	return append(programs, twin)
}

// quoted is a comment, which may say anything.
var quoted = regexp.MustCompile(`"(\\.|[^"\\])*"`)

// foreignSpans are the host ports that a rule leads elsewhere.
func foreignSpans(rule string, local []netip.Addr) []port.Span {
	fields := strings.Fields(quoted.ReplaceAllString(rule, "-"))
	values := make(map[string]string)
	for i := 0; i+1 < len(fields); i++ {
		if i > 0 && fields[i-1] == "!" {
			continue // for all but that
		}
		values[fields[i]] = fields[i+1]
	}
	protocol := port.Protocol(values["-p"])
	if protocol != port.TCP && protocol != port.UDP || !redirects(values["-j"]) || !addressed(values["-d"], local) {
		return nil
	}
	var spans []port.Span
	for text := range strings.SplitSeq(values["--dport"]+","+values["--dports"], ",") {
		from, to, isRange := strings.Cut(text, ":")
		if !isRange {
			to = from
		}
		first, err := strconv.ParseUint(from, 10, 16)
		last, lastErr := strconv.ParseUint(to, 10, 16)
		if err != nil || lastErr != nil {
			continue
		}
		spans = append(spans, port.Span{
			Protocol: protocol, First: uint16(first), Last: uint16(last), Rule: fmt.Sprintf("chain %s of iptables", values["-A"]),
		})
	}
	return spans
}

// redirects tells whether a target leads to another address or port. Kubernetes
// does so in a chain for each service.
func redirects(target string) bool {
	return target == "DNAT" || target == "REDIRECT" || strings.HasPrefix(target, "KUBE-EXT-") || strings.HasPrefix(target, "KUBE-SVC-")
}

// addressed tells whether packets to one of the host's addresses may match.
func addressed(destination string, local []netip.Addr) bool {
	if destination == "" {
		return true
	}
	prefix, err := netip.ParsePrefix(destination)
	if err != nil {
		return true // not understood, so not ruled out
	}
	return isLocal(prefix, local)
}

// isLocal tells whether one of the host's addresses is in a network.
func isLocal(network netip.Prefix, local []netip.Addr) bool {
	return network.Addr().IsLoopback() || slices.ContainsFunc(local, network.Contains)
}

// localAddresses are those of the host; none when they cannot be read.
func localAddresses() []netip.Addr {
	found, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var addresses []netip.Addr
	for _, address := range found {
		if prefix, err := netip.ParsePrefix(address.String()); err == nil {
			addresses = append(addresses, prefix.Addr())
		}
	}
	return addresses
}
