package runtime

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"

	"github.com/remotegpu/remotegpu/internal/cleanup"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/dns"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
)

// names keeps what environments are called as the store has it: it follows
// every change, and what it declares is served when it returns.
type names struct {
	manager *Manager

	mu      sync.Mutex
	loaded  bool
	hosts   map[string]*dns.Host // of environments that have a name, by id
	records map[string][]*DNSRecord
	envs    map[string]*Environment // as they were last told of
	dirty   bool                    // the last declaration failed
	stale   bool                    // records changed that could not be read
}

// load reads all environments and records and declares them at once.
func (n *names) load(ctx context.Context) error {
	m := n.manager
	if m.cfg.Names == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	// Records first: those of an environment that is deleted in between are
	// harmless, those of one that is not known would be missing.
	records, err := m.cfg.Store.DNSRecords(ctx, DNSFilter{})
	if err != nil {
		return err
	}
	envs, _, err := m.cfg.Store.Environments(ctx, Filter{})
	if err != nil {
		return err
	}
	n.records, n.envs, n.hosts = make(map[string][]*DNSRecord), make(map[string]*Environment), make(map[string]*dns.Host)
	for _, record := range records {
		n.records[record.EnvID] = append(n.records[record.EnvID], record)
	}
	for _, env := range envs {
		m.fill(env)
		n.envs[env.ID] = env
		if host := hostOf(env, n.records[env.ID]); host != nil {
			n.hosts[env.ID] = host
		}
	}
	n.loaded, n.stale = true, false
	return n.declare(ctx)
}

// ensure loads and declares what could not be before.
func (n *names) ensure(ctx context.Context) error {
	n.mu.Lock()
	done := n.loaded && !n.dirty && !n.stale
	n.mu.Unlock()
	if done {
		return n.readdress(ctx)
	}
	return n.load(ctx)
}

// readdress declares names anew whose environments have other addresses than
// before: they have those of IPv6 only while its rules are in force.
func (n *names) readdress(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	changed := false
	for id, env := range n.envs {
		now := *env // others have that one
		n.manager.address(&now)
		if now.Address == env.Address && now.Address6 == env.Address6 {
			continue
		}
		n.envs[id] = &now
		if host := hostOf(&now, n.records[id]); host != nil {
			n.hosts[id], changed = host, true
		}
	}
	if !changed {
		return nil
	}
	return n.declare(ctx)
}

// again declares one environment's names anew when they are others by now: those
// of mappings whose time is over are.
func (n *names) again(ctx context.Context, envID string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if env := n.envs[envID]; env != nil {
		n.set(ctx, env)
	}
}

// follow is told of every change of an environment, in the order of its
// revisions.
func (n *names) follow(env *Environment) {
	if n.manager.cfg.Names == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.loaded {
		return // load reads it
	}
	if env.State == Deleted || !env.Held {
		delete(n.records, env.ID)
	}
	n.envs[env.ID] = env
	if env.State == Deleted {
		delete(n.envs, env.ID)
	}
	n.set(context.Background(), env) //nolint:contextcheck,forbidigo // it is in memory, and nobody may cancel it
}

// reload reads the records of an environment after they changed, or may have:
// who asked for the change may have left since, and names follow the store all
// the same. What cannot be read now a pass reads.
func (n *names) reload(ctx context.Context, envID string) error {
	if n.manager.cfg.Names == nil {
		return nil
	}
	ctx, cancel := cleanup.Context(ctx)
	defer cancel()
	n.mu.Lock()
	defer n.mu.Unlock()
	records, err := n.manager.cfg.Store.DNSRecords(ctx, DNSFilter{EnvID: envID})
	if err != nil {
		n.stale = true
		n.manager.leave(ctx, slog.LevelError, "changed DNS records were not read", "environment", envID, "error", err)
		return fmt.Errorf("serve records of environment %s: %w", envID, err)
	}
	if env := n.envs[envID]; env != nil {
		n.records[envID] = records
		n.set(ctx, env)
	}
	return nil
}

// set declares one environment's names, when they are not what they were. The
// caller holds mu.
func (n *names) set(ctx context.Context, env *Environment) {
	host, before := hostOf(env, n.records[env.ID]), n.hosts[env.ID]
	if reflect.DeepEqual(host, before) && !n.dirty {
		return
	}
	if host == nil {
		delete(n.hosts, env.ID)
	} else {
		n.hosts[env.ID] = host
	}
	if err := n.declare(ctx); err != nil {
		n.manager.leave(ctx, slog.LevelError, "names were not declared", "environment", env.ID, "error", err)
	}
}

func (n *names) declare(ctx context.Context) error {
	hosts := make([]*dns.Host, 0, len(n.hosts))
	for _, host := range n.hosts {
		hosts = append(hosts, host)
	}
	slices.SortFunc(hosts, func(a, b *dns.Host) int { return cmp.Compare(a.ID, b.ID) })
	err := n.manager.cfg.Names.Declare(ctx, hosts)
	n.dirty = err != nil
	return err
}

// hostOf is what an environment is called, nil when it has none. It has a name,
// and may ask for others, from the moment that it has an address: its process
// may ask for one before anybody has recorded that it runs.
func hostOf(env *Environment, records []*DNSRecord) *dns.Host {
	if env.State == Deleted || !env.Held || !env.Address.IsValid() || env.StartedAt.IsZero() && env.State != Creating {
		return nil
	}
	host := &dns.Host{
		ID: env.ID, Name: env.Name, Project: env.Project, Address: env.Address, Address6: env.Address6, Forward: true,
		Text: []string{"id=" + env.ID, "project=" + env.Project, "node=" + env.Node},
	}
	if network := env.Spec.Network; network != nil {
		// One that may reach nothing shall not send data out in questions.
		host.Groups, host.Forward = network.Groups, network.Mode() != policy.None
	}
	live := livePorts(env)
	for i := range live {
		host.Services = append(host.Services, dns.Service{
			Name: serviceLabel(&live[i]), Protocol: string(live[i].Protocol), Port: live[i].External, Internal: live[i].Internal,
		})
	}
	for _, record := range records {
		host.Records = append(host.Records, record.Record)
	}
	return host
}

// serviceLabel is what a published port is called in SRV records: its service,
// or its number where that says nothing.
func serviceLabel(m *port.Mapping) string {
	if m.Service == port.Custom {
		return fmt.Sprintf("port%d", m.Internal)
	}
	return string(m.Service)
}

// dnsDisabled is the refusal of a node without names.
func dnsDisabled() error {
	return problem.New(problem.DNSDisabled, "this node's DNS responder is off").
		WithHint("set dns.enabled = true in the node's configuration")
}
