package runtime

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/oklog/ulid/v2"

	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/dns"
)

// PTR is the type of the names that addresses have. Only the node makes them.
const PTR dns.Type = "PTR"

// CreateDNSRecordRequest is a new record.
type CreateDNSRecordRequest struct {
	RequestID   string
	Project     string
	Environment string // id or name
	Name        string // "" or "@": the environment's own
	Type        dns.Type
	TTL         uint32 // seconds; 0: dns.DefaultTTL
	Data        string
	Labels      map[string]string
}

// CreateDNSRecord adds a record to an environment's names. It is served when
// the call has returned. DNS_DISABLED, ENV_NOT_FOUND, DNS_NAME_INVALID,
// DNS_DATA_INVALID, DNS_NAME_TAKEN, DNS_RECORD_EXISTS, DNS_RECORD_CONFLICT,
// DNS_RECORD_LIMIT_REACHED, REQUEST_ID_REUSED.
func (m *Manager) CreateDNSRecord(ctx context.Context, req CreateDNSRecordRequest) (*DNSRecord, error) {
	if m.cfg.Names == nil {
		return nil, dnsDisabled()
	}
	env, err := m.Get(ctx, req.Project, req.Environment)
	if err != nil {
		return nil, err
	}
	zones := m.cfg.Names.Zones()
	record := &DNSRecord{
		ID: ulid.Make().String(), EnvID: env.ID, EnvName: env.Name, Project: env.Project, Node: m.cfg.Node, Labels: req.Labels,
		Record:    dns.Record{Type: req.Type, TTL: cmp.Or(req.TTL, dns.DefaultTTL), Data: strings.TrimSpace(req.Data)},
		RequestID: req.RequestID, RequestHash: hashOf("dns.create", req), CreatedAt: time.Now(),
	}
	if err := placeRecord(record, env, req.Name, zones); err != nil {
		return nil, err
	}
	if err := checkRecord(record); err != nil {
		return nil, err
	}
	existing, err := m.cfg.Store.CreateDNSRecord(fault.Within(ctx, "request ", "dns.create"), record,
		func(env *Environment, others []*DNSRecord, taken func(string) (bool, error)) error {
			return fits(record, env, others, taken, zones)
		})
	served := m.names.reload(ctx, env.ID) // after an error too: perhaps only the answer was lost
	if err != nil {
		return nil, err
	}
	if existing != nil {
		if existing.RequestHash != record.RequestHash {
			return nil, problem.New(problem.RequestIDReused, "request id %q was used for another request", req.RequestID).WithField("request_id").
				WithHint("use a new request id for each request, and the same one only to repeat it")
		}
		record = existing
	}
	if served != nil {
		return nil, served // it is kept; a pass serves it, as does a repeated call
	}
	record.Warnings = m.recordWarnings(record)
	return record, nil
}

// DNSRecord returns a record that was added. DNS_RECORD_NOT_FOUND.
func (m *Manager) DNSRecord(ctx context.Context, id string) (*DNSRecord, error) {
	record, err := m.cfg.Store.DNSRecord(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil, problem.New(problem.DNSRecordNotFound, "there is no DNS record %q", id).WithField("id").
			WithHint("list them with: remotegpu dns ls; those that the node makes by itself have no id")
	}
	return record, err
}

// DeleteDNSRecord removes a record that was added; it is not served any more
// when the call has returned. etag "" removes it whatever it is.
// DNS_RECORD_NOT_FOUND, ETAG_MISMATCH.
func (m *Manager) DeleteDNSRecord(ctx context.Context, id, etag string) error {
	record, err := m.DNSRecord(ctx, id)
	if err != nil {
		return err
	}
	if etag != "" && etag != Etag(record.Revision) {
		return problem.New(problem.EtagMismatch, "DNS record %s has changed", id).WithField("etag").
			WithHint("read it again and use its etag")
	}
	var revision int64
	if etag != "" {
		revision = record.Revision
	}
	err = m.cfg.Store.DeleteDNSRecord(fault.Within(ctx, "request ", "dns.delete"), id, revision)
	served := m.names.reload(ctx, record.EnvID) // after an error too: perhaps only the answer was lost
	return cmp.Or(err, served)
}

// DNSListing selects records for people.
type DNSListing struct {
	Project     string
	Environment string // id or name; "": all
	Automatic   bool   // those that the node makes by itself, too
	Added       bool
}

// ListDNSRecords returns records by project, name, type and data. Those that
// the node makes are as they are on the LAN. ENV_NOT_FOUND.
func (m *Manager) ListDNSRecords(ctx context.Context, listing DNSListing) ([]*DNSRecord, error) {
	filter := DNSFilter{Project: listing.Project}
	envs := []*Environment{}
	if listing.Environment != "" {
		env, err := m.Get(ctx, listing.Project, listing.Environment)
		if err != nil {
			return nil, err
		}
		envs, filter.EnvID = append(envs, env), env.ID
	}
	var records []*DNSRecord
	if listing.Added {
		added, err := m.cfg.Store.DNSRecords(ctx, filter)
		if err != nil {
			return nil, fmt.Errorf("list DNS records: %w", err)
		}
		records = added
	}
	if listing.Automatic && m.cfg.Names != nil {
		if filter.EnvID == "" {
			var err error
			if envs, _, err = m.List(ctx, Filter{Project: listing.Project}); err != nil {
				return nil, err
			}
		}
		for _, env := range envs {
			records = append(records, m.automatic(env)...)
		}
	}
	slices.SortStableFunc(records, func(a, b *DNSRecord) int {
		return cmp.Or(cmp.Compare(a.Project, b.Project), cmp.Compare(a.Owner(), b.Owner()), cmp.Compare(a.Type, b.Type),
			cmp.Compare(a.Data, b.Data), cmp.Compare(a.ID, b.ID))
	})
	return records, nil
}

// automatic are the records that the node makes of an environment.
func (m *Manager) automatic(env *Environment) []*DNSRecord {
	host := hostOf(env, nil)
	if host == nil {
		return nil
	}
	var records []*DNSRecord
	add := func(name string, kind dns.Type, data string) {
		records = append(records, &DNSRecord{
			EnvID: env.ID, EnvName: env.Name, Project: env.Project, Node: env.Node, CreatedAt: env.CreatedAt,
			Record: dns.Record{Name: name, Type: kind, TTL: dns.DefaultTTL, Data: data},
		})
	}
	for _, address := range m.cfg.Names.Advertised() {
		kind := dns.AAAA
		if address.Is4() {
			kind = dns.A
		}
		add("", kind, address.String())
		add("*", kind, address.String())
	}
	for _, text := range host.Text {
		add("", dns.TXT, text)
	}
	for _, s := range host.Services {
		add("_"+s.Name+"._"+s.Protocol, dns.SRV, fmt.Sprintf("0 0 %d %s", s.Port, env.Name))
	}
	add("", PTR, env.Address.String())
	if env.Address6.IsValid() {
		add("", PTR, env.Address6.String())
	}
	return records
}

// DNSNames are the full names of a record, one in each zone.
func (m *Manager) DNSNames(record *DNSRecord) []string {
	if m.cfg.Names == nil {
		return nil
	}
	var full []string
	for _, zone := range m.cfg.Names.Zones() {
		full = append(full, record.Owner()+"."+record.Project+"."+zone)
	}
	return full
}
