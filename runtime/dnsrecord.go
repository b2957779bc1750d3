package runtime

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/dns"
)

// MaxDNSRecords is how many records may be added to one environment.
const MaxDNSRecords = 100

// DNSRecord is a record of the zones: one that was added to an environment's
// names, or, without an ID, one that the node makes by itself.
type DNSRecord struct {
	ID       string // ULID; "" when it is automatic
	EnvID    string
	EnvName  string // the environment's now, not kept
	Project  string
	Node     string
	Labels   map[string]string
	Revision int64 // counts changes, from 1; the API's etag
	dns.Record
	// RequestID and RequestHash are of the request that made it.
	RequestID, RequestHash string
	CreatedAt              time.Time
	Warnings               []string // what whoever adds it should know; not stored
}

// Owner is the record's name in the zone of its project.
func (r *DNSRecord) Owner() string {
	switch {
	case r.Alias:
		return r.Name
	case r.Name == "":
		return r.EnvName
	}
	return r.Name + "." + r.EnvName
}

// DNSFilter selects records. Zero fields select all.
type DNSFilter struct {
	Project string
	EnvID   string
}

// DNSStore keeps the records that were added. Errors are errdefs kinds or
// *problem.Problem.
type DNSStore interface {
	// CreateDNSRecord writes a record of an environment that exists. check is
	// called in the same transaction with the environment, the records of its
	// project, and a test for whether an environment of that project has a
	// name; its error comes back as it is. When the request id is known it
	// writes nothing and returns the record that it made.
	CreateDNSRecord(ctx context.Context, record *DNSRecord,
		check func(env *Environment, others []*DNSRecord, taken func(name string) (bool, error)) error) (existing *DNSRecord, err error)
	// DNSRecord returns one, NotFound (DNS_RECORD_NOT_FOUND).
	DNSRecord(ctx context.Context, id string) (*DNSRecord, error)
	// DNSRecords returns them in the order they were made.
	DNSRecords(ctx context.Context, filter DNSFilter) ([]*DNSRecord, error)
	// DeleteDNSRecord removes one whose revision is as given, 0: whatever it
	// is. NotFound, ETAG_MISMATCH.
	DeleteDNSRecord(ctx context.Context, id string, revision int64) error
}

// placeRecord reads the name that a record of an environment is to have: below
// the environment's name, or one label beside it. It may end in the zone.
func placeRecord(record *DNSRecord, env *Environment, name string, zones []string) error {
	given := name
	name = strings.ToLower(name)
	absolute := strings.HasSuffix(name, ".")
	name = strings.TrimSuffix(name, ".")
	inZone := false
	for _, zone := range zones {
		if rest, ok := strings.CutSuffix(name, "."+zone); ok {
			name, inZone = strings.TrimSuffix(rest, "."+env.Project), true
			break
		}
	}
	below, isBelow := strings.CutSuffix(name, "."+env.Name)
	switch {
	case absolute && !inZone:
		return nameInvalid(given, "is not in a zone of this node")
	case name == "" || name == "@" || name == env.Name:
		record.Name, record.Alias = "", false
	case isBelow:
		record.Name, record.Alias = below, false
	case !strings.Contains(name, ".") && name != "*" && !strings.HasPrefix(name, "_"):
		record.Name, record.Alias = name, true
	default:
		return nameInvalid(given, fmt.Sprintf("is neither %q, nor below it, nor one label beside it", env.Name))
	}
	return nil
}

func nameInvalid(name, why string) error {
	return problem.New(problem.DNSNameInvalid, "%q %s", name, why).WithField("name").
		WithHint("name it as in www.ENVIRONMENT, or as in www for an alias beside the environment; letters, digits, - and _")
}

// checkRecord refuses a record that is none by itself.
func checkRecord(record *DNSRecord) error {
	alone := record.Record
	alone.Type, alone.Data = dns.TXT, "x"
	if alone.Check() != nil {
		return nameInvalid(record.Name, "is no name")
	}
	if record.TTL > 86400 {
		return invalid("ttl", "use at most 86400 s, a day", "a TTL of %d s is too long", record.TTL)
	}
	if err := record.Check(); err != nil {
		return problem.New(problem.DNSDataInvalid, "%s", strings.TrimSuffix(err.Error(), ": invalid argument")).WithField("data").
			WithHint("A and AAAA take an address, CNAME a name, TXT text of at most %d bytes, SRV priority, weight, port and name", dns.MaxText)
	}
	return nil
}

// fits refuses a record that does not go with what there is.
func fits(record *DNSRecord, env *Environment, others []*DNSRecord, taken func(string) (bool, error), zones []string) error {
	record.EnvName = env.Name
	if record.Alias {
		if slices.Contains(dns.Reserved(), record.Name) {
			return nameTaken(record.Name, "it is the zone's own")
		}
		if is, err := taken(record.Name); err != nil {
			return err
		} else if is {
			return nameTaken(record.Name, "an environment is called so")
		}
	}
	if service := record.serviceOf(env); record.isAutomatic() || record.Type == dns.CNAME && service != "" {
		return recordConflict("the node itself says where %s leads to", record.Owner())
	}
	count := 0
	for _, other := range others {
		if other.EnvID == env.ID {
			count++
		}
		if err := beside(record, other); err != nil {
			return err
		}
	}
	if count >= MaxDNSRecords {
		return problem.New(problem.DNSRecordLimit, "environment %q has %d records", env.Name, count).
			WithHint("remove some: at most %d can be added to one environment", MaxDNSRecords)
	}
	return loops(record, others, zones)
}

// isAutomatic says whether the node makes records of that type at that name,
// which nothing can be beside.
func (r *DNSRecord) isAutomatic() bool {
	return !r.Alias && (r.Name == "" || r.Name == "*") && (r.Type == dns.CNAME || r.Type == dns.A || r.Type == dns.AAAA)
}

func recordConflict(format string, args ...any) error {
	return problem.New(problem.DNSRecordConflict, format, args...).WithField("name").
		WithHint("a CNAME is alone at its name; the addresses of an environment's own name are the node's to set")
}

// beside refuses a record that another one is in the way of.
func beside(record, other *DNSRecord) error {
	switch {
	case !sameOwner(record, other):
		return nil
	case other.EnvID != record.EnvID:
		return nameTaken(record.Name, "it is an alias of environment "+other.EnvName)
	case other.Type == record.Type && other.Data == record.Data:
		return problem.New(problem.DNSRecordExists, "%s has that record", record.Owner()).WithField("data").
			WithHint("list the records with: remotegpu dns ls --env %s", record.EnvName)
	case other.Type == dns.CNAME || record.Type == dns.CNAME:
		return recordConflict("%s has a record of type %s", record.Owner(), other.Type)
	}
	return nil
}

// serviceOf is the service of the environment whose name the record has.
func (r *DNSRecord) serviceOf(env *Environment) string {
	for i := range env.Ports {
		if label := serviceLabel(&env.Ports[i]); !r.Alias && r.Name == "_"+label+"._"+string(env.Ports[i].Protocol) {
			return label
		}
	}
	return ""
}

func sameOwner(a, b *DNSRecord) bool {
	if a.Alias != b.Alias || a.Name != b.Name {
		return false
	}
	return a.Alias || a.EnvID == b.EnvID
}

func nameTaken(name, why string) error {
	return problem.New(problem.DNSNameTaken, "the name %q is taken: %s", name, why).WithField("name").
		WithHint("choose another name, or remove that one first")
}

// loops refuses a CNAME that would lead to itself, by way of others of the
// project.
func loops(record *DNSRecord, others []*DNSRecord, zones []string) error {
	at := record
	for range 8 { // what the responder follows
		if at.Type != dns.CNAME {
			return nil
		}
		next := at.targetIn(zones)
		if next == "" {
			return nil // it leads out, or to the environment
		}
		if next == record.Owner() {
			return problem.New(problem.DNSRecordConflict, "the CNAME at %s would lead back to itself", record.Owner()).WithField("data").
				WithHint("let it lead to an environment, or to a name elsewhere")
		}
		at = nil
		for _, other := range others {
			if other.Owner() == next && other.Type == dns.CNAME {
				at = other
			}
		}
		if at == nil {
			return nil
		}
	}
	return problem.New(problem.DNSRecordConflict, "more than 8 CNAMEs would lead from %s to the next", record.Owner()).WithField("data").
		WithHint("let it lead to an environment, or to a name elsewhere")
}

// targetIn is the name that a CNAME leads to, in the zone of its project; ""
// elsewhere, or to its environment.
func (r *DNSRecord) targetIn(zones []string) string {
	target := strings.ToLower(strings.TrimSuffix(r.Data, "."))
	if target == "" || target == "@" {
		return ""
	}
	for _, zone := range zones {
		if rest, ok := strings.CutSuffix(target, "."+zone); ok {
			return strings.TrimSuffix(rest, "."+r.Project)
		}
	}
	if strings.Contains(target, ".") {
		return ""
	}
	return target
}
