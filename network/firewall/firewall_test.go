package firewall_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/network/firewall"
	"github.com/remotegpu/remotegpu/network/firewall/nft"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func newFirewall(t *testing.T, path string) *firewall.Firewall {
	t.Helper()
	f, err := firewall.New(firewall.Config{Subnet: netip.MustParsePrefix("10.88.0.0/16"), Path: path})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// from is a mapping that only some reach.
func from(m firewall.Mapping, sources ...string) firewall.Mapping {
	m.Inside = len(sources) == 0
	for _, source := range sources {
		m.Sources = append(m.Sources, netip.MustParsePrefix(source))
	}
	return m
}

func mapping(env string, service port.Service, protocol port.Protocol, hostPort uint16, to string) firewall.Mapping {
	return firewall.Mapping{EnvID: env, Service: service, Protocol: protocol, HostPort: hostPort, To: netip.MustParseAddrPort(to)}
}

func destination(text string) policy.Destination {
	d, err := policy.ParseDestination(text)
	if err != nil {
		panic(err)
	}
	return d
}

// saved is what iptables-save prints of our chains but the administrator's,
// in the canonical order of Text: tables raw, filter, nat; chains by name.
func saved(t *testing.T, h *host, six bool) string {
	t.Helper()
	var table string
	declared, rules := map[string][]string{}, map[string][]string{}
	for line := range strings.Lines(h.save(t, six)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "*"); ok {
			table = name
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(line, ":"), "-A "), " ")
		if !strings.HasPrefix(name, "RGPU-") || name == "RGPU-USER" {
			continue
		}
		if strings.HasPrefix(line, ":") {
			declared[table] = append(declared[table], name)
		} else {
			rules[table+name] = append(rules[table+name], line)
		}
	}
	var b strings.Builder
	for _, table := range []string{"raw", "filter", "nat"} {
		if len(declared[table]) == 0 {
			continue
		}
		slices.Sort(declared[table])
		fmt.Fprintf(&b, "*%s\n", table)
		for _, name := range declared[table] {
			fmt.Fprintf(&b, ":%s - [0:0]\n", name)
		}
		for _, name := range declared[table] {
			for _, rule := range rules[table+name] {
				b.WriteString(rule + "\n")
			}
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

func text(t *testing.T, f *firewall.Firewall) string {
	t.Helper()
	rendered, err := f.Text()
	if err != nil {
		t.Fatal(err)
	}
	return rendered
}

func same(t *testing.T, f *firewall.Firewall, h *host) {
	t.Helper()
	if diff := cmp.Diff(text(t, f), saved(t, h, false)); diff != "" {
		t.Fatalf("the kernel differs from what was rendered (-rendered +kernel):\n%s", diff)
	}
	diff, err := f.Diff(t.Context())
	if err != nil || diff != "" {
		t.Fatalf("Diff: %v\n%s", err, diff)
	}
}

// TestStates applies states one after the other and compares each with its
// golden text and with the kernel.
func TestStates(t *testing.T) {
	ssh := mapping("01A", port.SSH, port.TCP, 22000, "10.88.0.2:22")
	policies := []firewall.Policy{
		{EnvID: "01A", Address: netip.MustParseAddr("10.88.0.2"), Egress: policy.None, Groups: []string{"default/web", "default/db"}},
		{EnvID: "01B", Address: netip.MustParseAddr("10.88.0.10"), Egress: policy.AllowList, Allow: []policy.Destination{
			destination("198.51.100.0/24"), destination("203.0.113.7:443/tcp"), destination("203.0.113.7:5000-5010"), destination("0.0.0.0/0:53/udp"),
		}},
		{EnvID: "01C", Address: netip.MustParseAddr("10.88.16.2"), Egress: policy.Open, Groups: []string{"default/web"}},
		{EnvID: "01D", Address: netip.MustParseAddr("10.88.255.250"), Egress: policy.Open, Allow: []policy.Destination{destination("10.1.2.3/udp")}},
	}
	around := firewall.Surroundings{
		Closed: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")},
		Allow: []policy.Destination{
			destination("192.168.7.20:5000/tcp"), destination("10.9.0.0/16"), destination("169.254.169.254:80/tcp"), destination("10.8.0.1:53"),
		},
		Resolvers: []netip.Addr{netip.MustParseAddr("192.168.7.1"), netip.MustParseAddr("168.63.129.16")},
		Apart:     []firewall.HostLink{{Name: "br0", Bridge: true}, {Name: "eth1.20"}},
	}
	states := []struct {
		name     string
		mappings []firewall.Mapping
		policies []firewall.Policy
		around   firewall.Surroundings
	}{
		{name: "nothing"},
		{name: "one port", mappings: []firewall.Mapping{ssh}},
		{name: "two environments in one leaf", mappings: []firewall.Mapping{ssh, mapping("01B", port.SSH, port.TCP, 22001, "10.88.0.10:22")}},
		{name: "one in front, one elsewhere, udp", mappings: []firewall.Mapping{
			mapping("01C", port.RDP, port.UDP, 33890, "10.88.0.18:3389"),
			mapping("01C", port.RDP, port.TCP, 33890, "10.88.0.18:3389"),
			mapping("01C", port.Custom, port.TCP, 21999, "10.88.0.18:80"),
			ssh, mapping("01B", port.SSH, port.TCP, 22001, "10.88.0.10:22"),
		}},
		{name: "first gone", mappings: []firewall.Mapping{
			mapping("01C", port.RDP, port.UDP, 33890, "10.88.0.18:3389"),
			mapping("01B", port.SSH, port.TCP, 22001, "10.88.0.10:22"),
		}},
		{name: "moved to another environment", mappings: []firewall.Mapping{mapping("01D", port.SSH, port.TCP, 22001, "10.88.0.26:22")}},
		{name: "outermost ports", mappings: []firewall.Mapping{
			mapping("01D", "a service \"of\" mine", port.TCP, 1, "10.88.255.250:65535"),
			mapping("01D", port.Custom, port.UDP, 65535, "10.88.255.250:1"),
		}},
		{name: "for some only", mappings: []firewall.Mapping{
			from(mapping("01E", port.SSH, port.TCP, 22001, "10.88.0.34:22"), "192.0.2.0/24", "203.0.113.7/32"),
			mapping("01E", port.Custom, port.TCP, 22002, "10.88.0.34:80"),
			from(mapping("01E", port.Custom, port.UDP, 10000, "10.88.0.34:53"), "10.0.0.0/8"),
		}},
		{name: "for the inside only", mappings: []firewall.Mapping{
			from(mapping("01E", port.SSH, port.TCP, 22001, "10.88.0.34:22")),
			from(mapping("01E", port.Custom, port.TCP, 22002, "10.88.0.34:80"), "192.0.2.0/25"),
			from(mapping("01E", port.Custom, port.UDP, 10000, "10.88.0.34:53")),
			mapping("01F", port.SSH, port.TCP, 22003, "10.88.0.42:22"),
		}},
		{name: "nothing again"},
		{name: "policies", mappings: []firewall.Mapping{ssh}, policies: policies, around: around},
		{name: "policies without surroundings", policies: policies},
		{name: "fewer policies", policies: []firewall.Policy{policies[0], policies[3]}, around: around},
		{name: "nothing at last"},
	}
	onHosts(t, func(t *testing.T, h *host) {
		t.Helper()
		f := h.firewall(t, netip.Prefix{})
		for _, state := range states {
			desired := firewall.Desired{Mappings: state.mappings, Policies: state.policies, Surroundings: state.around}
			if err := f.Set(t.Context(), desired); err != nil {
				t.Fatalf("%s: %v", state.name, err)
			}
			same(t, f, h)
			golden(t, state.name, text(t, f))
			if err := f.Set(t.Context(), desired); err != nil {
				t.Fatalf("%s twice: %v", state.name, err)
			}
			same(t, f, h)
			if mended, err := f.Repair(t.Context()); err != nil || len(mended) > 0 {
				t.Fatalf("%s: Repair after Set mended %v, %v", state.name, mended, err)
			}
			there, err := h.firewall(t, netip.Prefix{}).Published(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(named(state.mappings), named(there.Mappings)); diff != "" {
				t.Fatalf("%s: Published (-want +got):\n%s", state.name, diff)
			}
			if !slices.EqualFunc(state.policies, there.Policies, func(a, b firewall.Policy) bool { return a.Equal(&b) }) {
				t.Fatalf("%s: policies are read back as %v, want %v", state.name, there.Policies, state.policies)
			}
			// What is read back is rendered as it was.
			there.Surroundings = state.around
			if _, differs, err := f.Check(t.Context(), there); err != nil || len(differs) > 0 {
				t.Fatalf("%s: Check of what was read back: %v, %v", state.name, differs, err)
			}
			// A process that starts now finds nothing to do.
			if mended, err := h.firewall(t, netip.Prefix{}).Restore(t.Context(), desired); err != nil || len(mended) > 0 {
				t.Fatalf("%s: Restore by another process mended %v, %v", state.name, mended, err)
			}
		}
	})
}

// named is the mappings as sorted text, services as comments hold them.
func named(mappings []firewall.Mapping) (all []string) {
	for _, m := range mappings {
		service := strings.NewReplacer(" ", "_", `"`, "_").Replace(string(m.Service))
		all = append(all, fmt.Sprint(m.EnvID, service, m.Protocol, m.HostPort, m.To, m.Sources, m.Inside))
	}
	slices.Sort(all)
	return all
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", strings.NewReplacer(" ", "-", ",", "").Replace(name)+".rules")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Fatalf("%s (-golden +got):\n%s", path, diff)
	}
}

func TestForeignRulesSurvive(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host) {
		t.Helper()
		foreign := func() string {
			var kept []string
			for line := range strings.Lines(h.save(t, false)) {
				if !strings.Contains(line, "RGPU-") && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ":") {
					kept = append(kept, line)
				}
			}
			return strings.Join(kept, "")
		}
		h.run(t, false, "nat -N OTHER", "nat -A PREROUTING -p tcp -m tcp --dport 81 -j OTHER",
			`nat -A OTHER -p tcp -m tcp --dport 81 -m comment --comment "like -j RGPU-DNAT" -j DNAT --to-destination 192.0.2.1:81`,
			"filter -A FORWARD -s 198.51.100.0/24 -j DROP", "raw -A PREROUTING -s 198.51.100.7/32 -j ACCEPT", "mangle -A FORWARD -j ACCEPT")
		before := foreign()
		f := h.firewall(t, netip.Prefix{})
		desired := firewall.Desired{Mappings: []firewall.Mapping{mapping("01A", port.SSH, port.TCP, 22000, "10.88.0.2:22")}}
		if err := f.Set(t.Context(), desired); err != nil {
			t.Fatal(err)
		}
		h.run(t, false, "filter -A RGPU-USER -s 203.0.113.9/32 -j DROP")
		if err := f.Set(t.Context(), firewall.Desired{}); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Repair(t.Context()); err != nil {
			t.Fatal(err)
		}
		if rules := h.rules(t, false, "RGPU-USER"); !slices.Equal(rules, []string{"-s 203.0.113.9/32 -j DROP"}) {
			t.Errorf("the administrator's rule is gone: %q", rules)
		}
		// A process that knows nothing removes all of ours and nothing else.
		if err := h.firewall(t, netip.Prefix{}).CleanUp(t.Context(), firewall.Kept{}); err != nil {
			t.Fatal(err)
		}
		after := h.save(t, false)
		if strings.Contains(strings.ReplaceAll(after, "like -j RGPU-DNAT", ""), "RGPU") {
			t.Errorf("CleanUp left:\n%s", after)
		}
		if diff := cmp.Diff(before, foreign()); diff != "" {
			t.Errorf("foreign rules changed (-before +after):\n%s", diff)
		}
		if err := f.CleanUp(t.Context(), firewall.Kept{}); err != nil {
			t.Errorf("CleanUp of nothing: %v", err)
		}
	})
}

func TestRepair(t *testing.T) {
	const hook = "-m comment --comment rgpu:hook -j"
	damages := map[string][]string{
		"nat flushed":           {"nat -F"},
		"chains gone":           {"nat -F", "nat -X"},
		"everything flushed":    {"raw -F", "raw -X", "filter -F", "filter -X", "nat -F", "nat -X"},
		"leaf emptied":          {"nat -F RGPU-TCP-22016"},
		"rule added":            {"filter -A RGPU-FWD -s 192.0.2.0/24 -j ACCEPT"},
		"rule doubled":          {`nat -A RGPU-TCP-22016 -p tcp -m tcp --dport 22016 -m comment --comment "rgpu:env=01A:ssh" -j DNAT --to-destination 10.88.0.2:22`},
		"rule of another form":  {"nat -R RGPU-TCP-22016 1 -p tcp -m tcp --dport 22016 -j DNAT --to-destination 10.88.0.2:22"},
		"stray chain":           {"nat -N RGPU-TCP-512", "nat -A RGPU-DNAT -p tcp -m tcp --dport 512:767 -j RGPU-TCP-512"},
		"hook gone":             {"filter -D FORWARD 1"},
		"hook doubled":          {"filter -A FORWARD " + hook + " RGPU-FWD"},
		"hook of another form":  {"filter -A FORWARD -i lo -j RGPU-FWD"},
		"hook behind a barrier": {"filter -I FORWARD 1 -j DROP"},
		"accepts before hooks":  {"filter -I FORWARD 1 -o eth9 -j ACCEPT", "filter -I INPUT 1 -p tcp -m tcp --dport 22 -j ACCEPT"},
		"hook doubled in front": {"filter -I INPUT 1 -i rgpu-+ " + hook + " RGPU-IN", "filter -I INPUT 1 -i eth9 -j ACCEPT"},
		"hook on both sides":    {"filter -A FORWARD -j DROP", "filter -A FORWARD " + hook + " RGPU-FWD"},
	}
	desired := firewall.Desired{Mappings: []firewall.Mapping{
		mapping("01A", port.SSH, port.TCP, 22016, "10.88.0.2:22"),
		mapping("01B", port.SSH, port.TCP, 22017, "10.88.0.10:22"),
		mapping("01A", port.Custom, port.UDP, 10000, "10.88.0.2:53"),
	}}
	onHosts(t, func(t *testing.T, h *host) {
		t.Helper()
		f := h.firewall(t, netip.Prefix{})
		if err := f.Set(t.Context(), desired); err != nil {
			t.Fatal(err)
		}
		hooks := func() (all []string) {
			for line := range strings.Lines(h.save(t, false)) {
				if strings.Contains(line, "rgpu:hook") {
					all = append(all, line)
				}
			}
			slices.Sort(all)
			return all
		}
		intact := hooks()
		for name, damage := range damages {
			h.run(t, false, damage...)
			damaged := h.save(t, false)
			if _, differs, err := f.Check(t.Context(), desired); err != nil || len(differs) == 0 {
				t.Errorf("%s: Check found %v, %v", name, differs, err)
			}
			if now := h.save(t, false); uncounted(now) != uncounted(damaged) {
				t.Errorf("%s: Check changed rules", name)
			}
			mended, err := f.Repair(t.Context())
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if len(mended) == 0 {
				t.Errorf("%s: Repair found nothing", name)
			}
			same(t, f, h)
			if diff := cmp.Diff(intact, hooks()); diff != "" {
				t.Fatalf("%s: hooks differ (-before +after):\n%s", name, diff)
			}
			if mended, err := f.Repair(t.Context()); err != nil || len(mended) > 0 {
				t.Errorf("%s: the second Repair mended %v, %v", name, mended, err)
			}
			if there, differs, err := f.Check(t.Context(), desired); err != nil || len(differs) > 0 || len(there.Mappings) != len(desired.Mappings) {
				t.Errorf("%s: after the repair Check found %v, published %v, %v", name, differs, there, err)
			}
		}
		for chain, to := range map[string]string{"FORWARD": "RGPU-FWD", "INPUT": "RGPU-IN"} {
			if rules := h.rules(t, false, chain); len(rules) == 0 || !strings.HasSuffix(rules[0], to) {
				t.Errorf("the hook of %s is not in front: %q", chain, rules)
			}
		}
		// Hooks are moved in one transaction: none is absent meanwhile.
		h.run(t, false, "filter -I FORWARD 1 -o eth8 -j ACCEPT", "filter -I INPUT 1 -i eth8 -j ACCEPT")
		before, errBefore := nft.Generation()
		mended, err := f.Repair(t.Context())
		after, errAfter := nft.Generation()
		if want := []string{"stray hooks", "filter FORWARD hook", "filter INPUT hook"}; err != nil || !slices.Equal(mended, want) {
			t.Errorf("mended %v, %v, want %v", mended, err, want)
		}
		if strings.HasSuffix(h.path, "nft") && (errors.Join(errBefore, errAfter) != nil || after-before != 1) {
			t.Errorf("hooks are moved in %d transactions, %v, %v", after-before, errBefore, errAfter)
		}
	})
}

// uncounted is a saved ruleset without its comments, which have the time.
func uncounted(saved string) string {
	var kept []string
	for line := range strings.Lines(saved) {
		if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ":") { // built-in chains have counters
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

// TestSetAfterForeignFlush: the fast path meets chains that are gone and
// repairs at once instead of failing.
func TestSetAfterForeignFlush(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host) {
		t.Helper()
		f := h.firewall(t, netip.Prefix{})
		one := mapping("01A", port.SSH, port.TCP, 22017, "10.88.0.2:22")
		if err := f.Set(t.Context(), firewall.Desired{Mappings: []firewall.Mapping{one}}); err != nil {
			t.Fatal(err)
		}
		h.run(t, false, "nat -F", "nat -X")
		two := mapping("01B", port.SSH, port.TCP, 22018, "10.88.0.10:22")
		if err := f.Set(t.Context(), firewall.Desired{Mappings: []firewall.Mapping{one, two}}); err != nil {
			t.Fatal(err)
		}
		same(t, f, h)
	})
}

// TestRandom applies random states, with damage in between, and holds that
// what the kernel saves is what was rendered.
func TestRandom(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host) {
		t.Helper()
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		f := h.firewall(t, netip.Prefix{})
		current := map[string]firewall.Mapping{}
		for range 60 {
			for range 1 + random.IntN(8) {
				protocol := []port.Protocol{port.TCP, port.UDP}[random.IntN(2)]
				hostPort := uint16(22000 + random.IntN(400) + 4096*random.IntN(2))
				key := fmt.Sprint(protocol, hostPort)
				if _, ok := current[key]; ok && random.IntN(2) == 0 {
					delete(current, key)
					continue
				}
				m := mapping(fmt.Sprintf("01%d", random.IntN(9)), port.SSH, protocol, hostPort,
					fmt.Sprintf("10.88.0.%d:%d", 2+8*random.IntN(20), 1+random.IntN(65535)))
				switch random.IntN(5) {
				case 0:
					m.Inside = true
				case 1:
					m.Sources = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/32", random.IntN(256))), netip.MustParsePrefix("198.51.100.0/24")}
				}
				current[key] = m
			}
			if random.IntN(10) == 0 {
				current = map[string]firewall.Mapping{}
			}
			var desired firewall.Desired
			for _, m := range current {
				desired.Mappings = append(desired.Mappings, m)
			}
			desired.Policies = randomPolicies(random)
			damage := random.IntN(6) == 0
			if damage {
				h.run(t, false, []string{"nat", "filter"}[random.IntN(2)]+" -F")
			}
			if err := f.Set(t.Context(), desired); err != nil {
				t.Fatal(err)
			}
			if damage {
				if _, err := f.Repair(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			same(t, f, h)
			there, err := h.firewall(t, netip.Prefix{}).Published(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !slices.EqualFunc(desired.Policies, there.Policies, func(a, b firewall.Policy) bool { return a.Equal(&b) }) {
				t.Fatalf("policies are read back as %v, want %v", there.Policies, desired.Policies)
			}
		}
	})
}

// randomPolicies are some policies that differ from the default, by address.
func randomPolicies(random *rand.Rand) (all []firewall.Policy) {
	for slot := range 40 {
		one := firewall.Policy{
			EnvID: fmt.Sprintf("01P%d", slot), Address: netip.AddrFrom4([4]byte{10, 88, byte(slot * 5), byte(slot%32*8 + 2)}),
			Egress: []policy.Egress{policy.Open, policy.Open, policy.AllowList, policy.None}[random.IntN(4)],
		}
		if one.Egress == policy.AllowList || one.Egress == policy.Open && random.IntN(2) == 0 {
			for range 1 + random.IntN(3) {
				one.Allow = append(one.Allow, destination(fmt.Sprintf("198.51.%d.0/24:%d", random.IntN(9), 1+random.IntN(3))))
			}
		}
		for _, name := range []string{"default/web", "default/db", "other/web"} {
			if random.IntN(3) == 0 {
				one.Groups = append(one.Groups, name)
			}
		}
		if random.IntN(2) == 0 && !one.IsDefault() {
			all = append(all, one)
		}
	}
	return all
}

func TestSetRefuses(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host) {
		t.Helper()
		f := h.firewall(t, netip.Prefix{})
		good := mapping("01A", port.SSH, port.TCP, 22000, "10.88.0.2:22")
		if err := f.Set(t.Context(), firewall.Desired{Mappings: []firewall.Mapping{good}}); err != nil {
			t.Fatal(err)
		}
		for name, bad := range map[string]firewall.Mapping{
			"outside the subnet": mapping("01B", port.SSH, port.TCP, 22001, "192.0.2.1:22"),
			"no host port":       mapping("01B", port.SSH, port.TCP, 0, "10.88.0.10:22"),
			"no port inside":     mapping("01B", port.SSH, port.TCP, 22001, "10.88.0.10:0"),
			"protocol":           mapping("01B", port.SSH, "sctp", 22001, "10.88.0.10:22"),
		} {
			if err := f.Set(t.Context(), firewall.Desired{Mappings: []firewall.Mapping{good, bad}}); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
		here := netip.MustParseAddr("10.88.0.2")
		for name, bad := range map[string]firewall.Policy{
			"address":     {EnvID: "01B", Address: netip.MustParseAddr("192.0.2.1"), Egress: policy.None},
			"mode":        {EnvID: "01B", Address: here, Egress: "some"},
			"destination": {EnvID: "01B", Address: here, Allow: []policy.Destination{{Prefix: netip.MustParsePrefix("fd00::/8")}}},
			"ports":       {EnvID: "01B", Address: here, Allow: []policy.Destination{{Prefix: netip.MustParsePrefix("192.0.2.0/24"), First: 2, Last: 1}}},
			"group":       {EnvID: "01B", Address: here, Groups: []string{`default/we"b`}},
		} {
			if err := f.Set(t.Context(), firewall.Desired{Policies: []firewall.Policy{bad}}); !errdefs.IsInvalidArgument(err) {
				t.Errorf("policy with a bad %s: %v", name, err)
			}
		}
		if err := f.Set(t.Context(), firewall.Desired{Policies: []firewall.Policy{
			{EnvID: "01A", Address: here, Egress: policy.None}, {EnvID: "01B", Address: here, Egress: policy.None},
		}}); !errdefs.IsAlreadyExists(err) {
			t.Errorf("two policies for an address: %v", err)
		}
		twice := mapping("01B", port.SSH, port.TCP, 22000, "10.88.0.10:22")
		if err := f.Set(t.Context(), firewall.Desired{Mappings: []firewall.Mapping{good, twice}}); !errdefs.IsAlreadyExists(err) {
			t.Errorf("the same port twice: %v", err)
		}
		same(t, f, h)
		if rendered := text(t, f); !strings.Contains(rendered, "10.88.0.2:22") {
			t.Errorf("a refused state replaced the good one:\n%s", rendered)
		}
	})
}

// TestLocked: a lock that another program keeps is a problem with a hint, and
// the state is reached once it is free.
func TestLocked(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	lock := filepath.Join(t.TempDir(), "lock")
	t.Setenv("XTABLES_LOCKFILE", lock)
	testutil.NetNS(t)
	f := newFirewall(t, "/usr/sbin/iptables-legacy")
	release := testutil.HoldLock(t, lock)
	desired := firewall.Desired{Mappings: []firewall.Mapping{mapping("01A", port.SSH, port.TCP, 22000, "10.88.0.2:22")}}
	err := f.Set(t.Context(), desired)
	p := problem.Of(err)
	if err == nil || p.Reason != problem.FirewallFailed || !strings.Contains(p.Hint, "lock") {
		t.Fatalf("Set under a foreign lock: %v, hint %q", err, p.Hint)
	}
	release()
	if err := f.Set(t.Context(), desired); err != nil {
		t.Fatal(err)
	}
	same(t, f, kernel("/usr/sbin/iptables-legacy"))
}

// TestRenamedChains: a chain that a hook leads to and that somebody renames is
// ours still: it is removed with the hook to it, by a repair and when all is
// cleaned up; what others have put into it or lead to it is not.
func TestRenamedChains(t *testing.T) {
	onBackends(t, func(t *testing.T, path string) {
		t.Helper()
		f := newFirewall6(t, path, ula)
		desired := firewall.Desired{Mappings: []firewall.Mapping{mapping("01A", port.SSH, port.TCP, 22000, "10.88.0.2:22")}}
		if err := f.Set(t.Context(), desired); err != nil {
			t.Fatal(err)
		}
		before := saved(t, kernel(path), false) + saved(t, kernel(path), true)
		rename := strings.NewReplacer("$I6", strings.Replace(path, "iptables", "ip6tables", 1), "$I", path).Replace(`for i in $I $I6; do
			$i -E RGPU-FWD WAS-FWD; $i -E RGPU-IN WAS-IN; $i -t raw -E RGPU-RAW WAS-RAW; $i -t nat -E RGPU-DNAT WAS-DNAT; $i -t nat -E RGPU-POST WAS-POST; done`)
		testutil.Sh(t, rename)
		if diff, err := f.Diff(t.Context()); err != nil || strings.Count(diff, "WAS-FWD") == 0 {
			t.Errorf("the difference says nothing of the chain, error %v:\n%s", err, diff)
		}
		if mended, err := f.Repair(t.Context()); err != nil || len(mended) == 0 {
			t.Errorf("mended %v, error %v", mended, err)
		}
		after := saved(t, kernel(path), false) + saved(t, kernel(path), true)
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("after the repair (-before +after):\n%s", diff)
		}
		rules := func() string {
			return testutil.Sh(t, path+"-save; "+strings.Replace(path, "iptables", "ip6tables", 1)+"-save")
		}
		if all := rules(); strings.Contains(all, "WAS-") {
			t.Errorf("after the repair:\n%s", all)
		}
		testutil.Sh(t, rename+"; "+path+" -A WAS-FWD -s 192.0.2.1/32 -j ACCEPT; "+path+" -t nat -A POSTROUTING -s 192.0.2.1/32 -j WAS-POST")
		if err := f.CleanUp(t.Context(), firewall.Kept{}); err != nil {
			t.Fatal(err)
		}
		all := rules()
		if strings.Contains(all, "RGPU") || strings.Contains(all, "rgpu:hook") {
			t.Errorf("after CleanUp:\n%s", all)
		}
		for what, count := range map[string]int{
			":WAS-": 2, ":WAS-FWD": 1, "-A WAS-FWD -s 192.0.2.1/32 -j ACCEPT": 1, ":WAS-POST": 1, "-A POSTROUTING -s 192.0.2.1/32 -j WAS-POST": 1,
		} {
			if got := strings.Count(all, what); got != count {
				t.Errorf("after CleanUp %q is there %d times, want %d:\n%s", what, got, count, all)
			}
		}
	})
}

// TestMissingModule: a kernel without a match that rules need is a problem that
// says so at once, not a lock that is waited for, and leaves what was there.
func TestMissingModule(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	testutil.NetNS(t)
	dir := t.TempDir()
	for _, twin := range []string{"", "-save", "-restore"} {
		testutil.Sh(t, fmt.Sprintf(`printf '#!/bin/sh\nexec /usr/sbin/iptables-nft%[1]s "$@"\n' >%[2]s/iptables%[1]s; chmod +x %[2]s/iptables%[1]s`, twin, dir))
	}
	f := newFirewall(t, dir+"/iptables")
	desired := firewall.Desired{Mappings: []firewall.Mapping{mapping("01A", port.SSH, port.TCP, 22000, "10.88.0.2:22")}}
	if err := f.Set(t.Context(), desired); err != nil {
		t.Fatal(err)
	}
	testutil.Sh(t, fmt.Sprintf(`mv %[1]s/iptables-restore %[1]s/kept; printf '#!/bin/sh\ncat >/dev/null
		echo "Warning: Extension rpfilter revision 0 not supported, missing kernel module?" >&2; echo "iptables-restore: line 6 failed" >&2; exit 4\n' >%[1]s/iptables-restore
		chmod +x %[1]s/iptables-restore`, dir))
	err := f.Set(t.Context(), firewall.Desired{})
	if p := problem.Of(err); err == nil || p.Reason != problem.FirewallFailed || !strings.Contains(p.Hint, "modprobe") {
		t.Fatalf("Set without a module: %v, hint %q", err, p.Hint)
	}
	testutil.Sh(t, fmt.Sprintf("mv %[1]s/kept %[1]s/iptables-restore", dir))
	same(t, f, kernel("/usr/sbin/iptables-nft"))
	if err := f.Set(t.Context(), firewall.Desired{}); err != nil {
		t.Fatal(err)
	}
	same(t, f, kernel("/usr/sbin/iptables-nft"))
}

func TestNew(t *testing.T) {
	subnet := netip.MustParsePrefix("10.88.0.0/16")
	for name, cfg := range map[string]firewall.Config{
		"no subnet":     {},
		"host bits":     {Subnet: netip.MustParsePrefix("10.88.0.1/16")},
		"IPv6":          {Subnet: netip.MustParsePrefix("fd00::/64")},
		"prefix":        {Subnet: subnet, Prefix: "a b"},
		"long prefix":   {Subnet: subnet, Prefix: "ABCDEFGHI"},
		"no such path":  {Subnet: subnet, Path: "/nonexistent/iptables"},
		"twins missing": {Subnet: subnet, Path: "/bin/true"},
	} {
		if _, err := firewall.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestBackend(t *testing.T) {
	onBackends(t, func(t *testing.T, path string) {
		t.Helper()
		want := map[bool]string{true: "nf_tables", false: "legacy"}[strings.HasSuffix(path, "nft")]
		if got, err := newFirewall(t, path).Backend(t.Context()); got != want || err != nil {
			t.Errorf("%s, %v", got, err)
		}
	})
}

// BenchmarkPublish adds an environment's five ports to a host that has 64
// environments, and removes them again.
func BenchmarkPublish(b *testing.B) {
	testutil.Require(b, testutil.Root, testutil.IPTables)
	for _, backend := range []string{"nft", "legacy"} {
		b.Run(backend, func(b *testing.B) {
			b.Setenv("XTABLES_LOCKFILE", filepath.Join(b.TempDir(), "lock"))
			testutil.NetNS(b)
			f, err := firewall.New(firewall.Config{Subnet: netip.MustParsePrefix("10.88.0.0/16"), Path: "/usr/sbin/iptables-" + backend})
			if err != nil {
				b.Fatal(err)
			}
			state := func(environments int) (desired firewall.Desired) {
				for i := range environments {
					for j, base := range []int{22000, 33890, 8888, 5900, 10000} {
						desired.Mappings = append(desired.Mappings, mapping(fmt.Sprint(i), port.Custom, port.TCP,
							uint16(base+i), fmt.Sprintf("10.88.%d.%d:%d", i/32, i%32*8+2, j+1)))
					}
				}
				return desired
			}
			if err := f.Set(b.Context(), state(64)); err != nil {
				b.Fatal(err)
			}
			with, without := state(65), state(64)
			for b.Loop() {
				if err := f.Set(b.Context(), with); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := f.Set(b.Context(), without); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
