package runtime_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/dns"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
	"github.com/remotegpu/remotegpu/runtime/runtimetest"
)

// Names follow what environments are, and are declared by the time that a call
// or an operation is done.
func TestNamesFollowEnvironments(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	req := plain("desk")
	req.Spec.Ports = []port.Request{{Service: port.SSH}, {Service: port.Custom, Internal: 8080, Protocol: port.UDP}}
	env, _ := d.create(req)
	host := h.names.Host("desk")
	if host == nil {
		t.Fatal("it has no name when it runs")
	}
	var services []string
	for _, s := range host.Services {
		services = append(services, fmt.Sprintf("%s/%s %d", s.Name, s.Protocol, s.Internal))
	}
	if diff := cmp.Diff([]string{"ssh/tcp 22", "port8080/udp 8080"}, services); diff != "" || host.ID != env.ID || host.Address != env.Address ||
		host.Project != "default" || !host.Forward || !slices.Contains(host.Text, "id="+env.ID) {
		t.Errorf("declared: %+v", host)
	}
	before := h.names.Count()
	d.act(d.Stop, "desk")
	if h.names.Host("desk") != host || h.names.Count() != before {
		t.Error("a stop declares names anew, though they stay")
	}
	if _, err := d.Rename(t.Context(), runtime.RenameRequest{Environment: "desk", Name: "lab"}); err != nil {
		t.Fatal(err)
	}
	if h.names.Host("desk") != nil || h.names.Host("lab") == nil {
		t.Error("a rename does not change the name")
	}
	d.stop()
	d = start(t, h)
	if h.names.Host("lab") == nil {
		t.Error("after a restart of the daemon it has no name")
	}
	h.names.Fail(true)
	d.create(plain("other")) // it runs all the same
	h.names.Fail(false)
	d.act(d.Restart, "lab")
	if h.names.Host("other") == nil {
		t.Error("what could not be declared is not made up for")
	}
	d.act(d.Delete, "lab")
	if h.names.Host("lab") != nil {
		t.Error("a deleted environment has a name")
	}
}

// Names that could not be read when the daemon started are read by a pass,
// whether or not the engine answers.
func TestNamesAreReadAgain(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(plain("desk"))
	d.stop()
	declared := h.names.Count()
	broken := errors.New("broken on purpose")
	h.faults.FailCall("Store.DNSRecords", 0, broken)
	d = start(t, h)
	if h.names.Count() != declared {
		t.Fatal("names were declared that could not be read")
	}
	h.faults.Reset()
	h.faults.FailCall("Engine.List", 0, broken)
	if err := d.Reconcile(t.Context()); !errors.Is(err, broken) {
		t.Fatalf("the pass: %v", err)
	}
	if h.names.Count() != declared+1 || h.names.Host("desk") == nil {
		t.Errorf("declared %d times", h.names.Count()-declared)
	}
	h.faults.Reset()
	if err := d.Reconcile(t.Context()); err != nil || h.names.Count() != declared+1 {
		t.Errorf("once more: %v, declared %d times", err, h.names.Count()-declared)
	}
}

// Records are served as the store has them, though whoever changed them has left
// by then, the answer of the store was lost, or they could not be read at once.
func TestDNSRecordsAreServedAsStored(t *testing.T) {
	broken := errors.New("broken on purpose")
	for _, c := range []struct {
		name   string
		faults func(f *runtimetest.Faults, leave func())
		passes bool // whether a pass must have been
	}{
		{"who asked has left", func(f *runtimetest.Faults, leave func()) {
			f.Hook(func(method string) {
				if method == "Store.DNSRecords" {
					leave()
				}
			})
		}, false},
		{"the answer is lost", func(f *runtimetest.Faults, _ func()) {
			f.Fail("Store.CreateDNSRecord", 1, runtimetest.After, broken)
			f.Fail("Store.DeleteDNSRecord", 1, runtimetest.After, broken)
		}, false},
		{"they cannot be read", func(f *runtimetest.Faults, _ func()) { f.FailCall("Store.DNSRecords", 1, broken) }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			d := start(t, h)
			d.create(plain("desk"))
			d.create(plain("other"))
			served := func(what string, want int) {
				t.Helper()
				h.faults.Reset()
				if c.passes {
					d.act(d.Restart, "other") // names that change meanwhile make nobody forget
					if err := d.Reconcile(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				if host := h.names.Host("desk"); host == nil || len(host.Records) != want {
					t.Errorf("%s: %+v is served, want %d records", what, host, want)
				}
			}
			ctx, leave := context.WithCancel(t.Context())
			c.faults(&h.faults, leave)
			_, _ = d.CreateDNSRecord(ctx, runtime.CreateDNSRecordRequest{Environment: "desk", Name: "www", Type: dns.CNAME})
			served("added", 1)
			records, err := d.ListDNSRecords(t.Context(), runtime.DNSListing{Added: true})
			if err != nil || len(records) != 1 {
				t.Fatalf("stored: %v, %v", records, err)
			}
			ctx, leave = context.WithCancel(t.Context())
			c.faults(&h.faults, leave)
			_ = d.DeleteDNSRecord(ctx, records[0].ID, "")
			served("removed", 0)
			leave()
		})
	}
}

// Names lead to IPv6 while environments have it, whenever that comes or goes.
func TestNamesFollowIPv6(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(plain("desk"))
	d.create(plain("lab"))
	leads := func(what string, want bool) {
		t.Helper()
		for _, name := range []string{"desk", "lab"} {
			if host := h.names.Host(name); host == nil || host.Address6.IsValid() != want {
				t.Errorf("%s: %s is declared as %+v", what, name, host)
			}
		}
	}
	leads("without IPv6", false)
	h.networks.SetIPv6(true)
	declared := h.names.Count()
	d.AddressesChanged(t.Context())
	leads("with IPv6", true)
	h.networks.SetIPv6(false)
	h.names.Fail(true)
	d.AddressesChanged(t.Context())
	h.names.Fail(false)
	if err := d.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	leads("after a pass", false)
	if got := h.names.Count() - declared; got != 3 {
		t.Errorf("declared %d times, want once for each change, and once more after the failure", got)
	}
}

// An environment may ask for names before it is recorded that it runs: its
// process does so first of all.
func TestNamesAreThereWhenTheProcessStarts(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, op, err := d.Create(t.Context(), plain("desk"))
	if err != nil {
		t.Fatal(err)
	}
	if host := h.names.Host("desk"); host == nil || host.Address != env.Address {
		t.Errorf("when its create is answered: %+v", host)
	}
	if _, err := d.queue.Wait(t.Context(), op.ID); err != nil {
		t.Fatal(err)
	}
	h.faults.FailCall("Engine.Start", 1, errors.New("as asked for"))
	if _, op := d.create(plain("broken")); op.State != operation.Failed {
		t.Fatalf("it was made: %+v", op)
	}
	if h.names.Host("broken") != nil {
		t.Error("one whose create failed has a name")
	}
}

// add adds a record.
func (d *daemon) add(name string, kind dns.Type, data string) (*runtime.DNSRecord, error) {
	return d.CreateDNSRecord(d.t.Context(), runtime.CreateDNSRecordRequest{Environment: "desk", Name: name, Type: kind, Data: data})
}

// A project and an environment of one name share it in the zones: who makes
// the second, or a name that only the whole name leads to, is told.
func TestNamesSharedWithProjects(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	told := func(warnings []string, text string) bool {
		return slices.ContainsFunc(warnings, func(w string) bool { return strings.Contains(w, text) })
	}
	in := func(project, name string) *runtime.Environment {
		req := plain(name)
		req.Project = project
		env, _ := d.create(req)
		return env
	}
	if env := in("default", "desk"); told(env.Warnings, "called") {
		t.Errorf("warnings of the first environment: %q", env.Warnings)
	}
	if record, err := d.add("www.desk", dns.A, "192.0.2.1"); err != nil || len(record.Warnings) != 0 {
		t.Errorf("a record that is found: %+v, %v", record, err)
	}
	if env := in("desk", "a"); !told(env.Warnings, "*.desk.default.gpu.internal") {
		t.Errorf("warnings of an environment in the project: %q", env.Warnings)
	}
	for name, warned := range map[string]bool{"zz.desk": true, "*.desk": true, "a.b.desk": true, "@": false, "_sip._udp.desk": false, "alias": false} {
		record, err := d.add(name, dns.TXT, "x")
		if err != nil || told(record.Warnings, ".desk.default.gpu.internal") != warned {
			t.Errorf("record %s: %+v, %v", name, record, err)
		}
	}
	for _, c := range []struct {
		project, name string
		warned        bool
	}{{"team", "b", false}, {"default", "team", true}, {"team", "team", true}, {"team", "desk", false}, {"default", "default", true}} {
		if env := in(c.project, c.name); told(env.Warnings, "a project is called \""+c.name+"\"") != c.warned {
			t.Errorf("%s in %s: %q", c.name, c.project, env.Warnings)
		}
	}
}

func TestDNSRecords(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	req := plain("desk")
	req.Spec.Ports = []port.Request{{Service: port.SSH}}
	d.create(req)
	d.create(plain("other"))
	for _, good := range []struct {
		name  string
		kind  dns.Type
		data  string
		owner string
	}{
		{"www", dns.CNAME, "", "www"},
		{"@", dns.TXT, "a", "desk"},
		{"", dns.TXT, "b", "desk"},
		{"desk", dns.SRV, "1 2 3", "desk"},
		{"DB.Desk", dns.A, "192.0.2.1", "db.desk"},
		{"db.desk.default.gpu.internal.", dns.AAAA, "2001:db8::1", "db.desk"},
		{"two.desk.env.example.com", dns.CNAME, "www.example.org", "two.desk"},
		{"*.desk", dns.TXT, "c", "*.desk"},
		{"_ssh._tcp.desk", dns.SRV, "9 0 22 other", "_ssh._tcp.desk"},
		{"l1", dns.CNAME, "l2", "l1"},
		{"l2", dns.CNAME, "l3.gpu.internal.", "l2"},
	} {
		record, err := d.add(good.name, good.kind, good.data)
		if err != nil {
			t.Errorf("%+v: %v", good, err)
			continue
		}
		if record.Owner() != good.owner || record.Revision != 1 || record.TTL != dns.DefaultTTL {
			t.Errorf("%+v: %+v", good, record)
		}
		if again, err := d.DNSRecord(t.Context(), record.ID); err != nil || again.Owner() != good.owner || again.Data != good.data {
			t.Errorf("%+v: read back %+v %v", good, again, err)
		}
	}
	if host := h.names.Host("desk"); len(host.Records) != 11 {
		t.Errorf("declared: %+v", host.Records)
	}
	for _, bad := range []struct {
		name   string
		kind   dns.Type
		data   string
		reason problem.Reason
		field  string
	}{
		{"www.example.org.", dns.A, "192.0.2.1", problem.DNSNameInvalid, "name"},
		{"x.other", dns.A, "192.0.2.1", problem.DNSNameInvalid, "name"},
		{"*", dns.TXT, "x", problem.DNSNameInvalid, "name"},
		{"_x", dns.TXT, "x", problem.DNSNameInvalid, "name"},
		{"a..desk", dns.TXT, "x", problem.DNSNameInvalid, "name"},
		{strings.Repeat("a", 64), dns.CNAME, "", problem.DNSNameInvalid, "name"},
		{"other", dns.CNAME, "", problem.DNSNameTaken, "name"},
		{"NS", dns.A, "192.0.2.66", problem.DNSNameTaken, "name"},
		{"hostmaster.gpu.internal.", dns.A, "192.0.2.66", problem.DNSNameTaken, "name"},
		{"@", dns.CNAME, "www.example.org", problem.DNSRecordConflict, "name"},
		{"@", dns.A, "192.0.2.1", problem.DNSRecordConflict, "name"},
		{"*.desk", dns.AAAA, "2001:db8::1", problem.DNSRecordConflict, "name"},
		{"_ssh._tcp.desk", dns.CNAME, "", problem.DNSRecordConflict, "name"},
		{"www", dns.TXT, "x", problem.DNSRecordConflict, "name"},
		{"db.desk", dns.CNAME, "", problem.DNSRecordConflict, "name"},
		{"db.desk", dns.A, "192.0.2.1", problem.DNSRecordExists, "data"},
		{"l3", dns.CNAME, "l1", problem.DNSRecordConflict, "data"},
		{"self", dns.CNAME, "self", problem.DNSRecordConflict, "data"},
		{"x.desk", dns.A, "2001:db8::1", problem.DNSDataInvalid, "data"},
		{"x.desk", "MX", "10 x", problem.DNSDataInvalid, "data"},
		{"x.desk", dns.TXT, "two\nlines", problem.DNSDataInvalid, "data"},
	} {
		_, err := d.add(bad.name, bad.kind, bad.data)
		if p := problem.Of(err); err == nil || p.Reason != bad.reason || p.Field != bad.field || p.Hint == "" {
			t.Errorf("%+v: %v at %q", bad, err, problem.Of(err).Field)
		}
	}
	if _, err := d.CreateDNSRecord(t.Context(), runtime.CreateDNSRecordRequest{Environment: "other", Name: "www", Type: dns.CNAME}); reasonOf(err) != problem.DNSNameTaken {
		t.Errorf("another one's alias: %v", err)
	}
	if _, err := d.CreateDNSRecord(t.Context(), runtime.CreateDNSRecordRequest{Environment: "other", Name: "x.other", Type: dns.TXT, Data: "x", TTL: 86401}); problem.Of(err).Field != "ttl" {
		t.Errorf("a TTL that is too long: %v", err)
	}
	if _, _, err := d.Create(t.Context(), plain("www")); reasonOf(err) != problem.DNSNameTaken {
		t.Errorf("an environment that is called as an alias is: %v", err)
	}
	if _, err := d.Rename(t.Context(), runtime.RenameRequest{Environment: "other", Name: "www"}); reasonOf(err) != problem.DNSNameTaken {
		t.Errorf("an environment that is renamed to an alias: %v", err)
	}
	for _, name := range []string{"ns", "hostmaster"} { // who has the server's name has the zone
		if _, _, err := d.Create(t.Context(), plain(name)); reasonOf(err) != problem.EnvNameInvalid {
			t.Errorf("an environment that is called %s: %v", name, err)
		}
		if _, err := d.Rename(t.Context(), runtime.RenameRequest{Environment: "other", Name: name}); reasonOf(err) != problem.EnvNameInvalid {
			t.Errorf("an environment that is renamed to %s: %v", name, err)
		}
	}
	for i := range runtime.MaxDNSRecords {
		_, err := d.add(fmt.Sprintf("n%d.desk", i), dns.TXT, "x")
		if err != nil {
			if reasonOf(err) != problem.DNSRecordLimit || i != runtime.MaxDNSRecords-11 {
				t.Errorf("record %d: %v", i, err)
			}
			break
		}
	}
	d.act(d.Stop, "desk")
	d.act(d.Delete, "desk")
	if left, err := d.store.DNSRecords(t.Context(), runtime.DNSFilter{}); err != nil || len(left) != 0 {
		t.Errorf("records of a deleted environment: %v %v", left, err)
	}
	d.create(plain("www"))
}

func TestDNSRecordsAreRepeatableAndListed(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(plain("desk"))
	lab := plain("lab")
	lab.Project = "other"
	d.create(lab)
	req := runtime.CreateDNSRecordRequest{RequestID: "r", Environment: "desk", Name: "www", Type: dns.CNAME, Labels: map[string]string{"a": "b"}}
	first, err := d.CreateDNSRecord(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := d.CreateDNSRecord(t.Context(), req); err != nil || again.ID != first.ID || again.Labels["a"] != "b" {
		t.Errorf("repeated: %+v %v", again, err)
	}
	changed := req
	changed.Name = "web"
	if _, err := d.CreateDNSRecord(t.Context(), changed); reasonOf(err) != problem.RequestIDReused {
		t.Errorf("another request with the same id: %v", err)
	}
	list := func(listing runtime.DNSListing) []string {
		t.Helper()
		records, err := d.ListDNSRecords(t.Context(), listing)
		if err != nil {
			t.Fatal(err)
		}
		var texts []string
		for _, r := range records {
			if r.Type != dns.TXT && r.Type != runtime.PTR && r.Type != dns.SRV {
				texts = append(texts, fmt.Sprintf("%s %s %s %s", r.Project, r.Owner(), r.Type, r.Data))
			}
		}
		return texts
	}
	automatic := []string{"default *.desk A 192.0.2.7", "default desk A 192.0.2.7"}
	if diff := cmp.Diff(append(slices.Clone(automatic), "default www CNAME "), list(runtime.DNSListing{Environment: "desk", Automatic: true, Added: true})); diff != "" {
		t.Errorf("of one environment (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(slices.Concat(automatic, []string{"default www CNAME ", "other *.lab A 192.0.2.7", "other lab A 192.0.2.7"}), list(runtime.DNSListing{Automatic: true, Added: true})); diff != "" {
		t.Errorf("all (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"default www CNAME "}, list(runtime.DNSListing{Added: true})); diff != "" {
		t.Errorf("those that were added (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"www.default.gpu.internal", "www.default.env.example.com"}, d.DNSNames(first)); diff != "" {
		t.Errorf("in full (-want +got)\n%s", diff)
	}
	if err := d.DeleteDNSRecord(t.Context(), first.ID, "2"); reasonOf(err) != problem.EtagMismatch {
		t.Errorf("with another etag: %v", err)
	}
	if err := d.DeleteDNSRecord(t.Context(), first.ID, "1"); err != nil {
		t.Fatal(err)
	}
	if err := d.DeleteDNSRecord(t.Context(), first.ID, ""); reasonOf(err) != problem.DNSRecordNotFound {
		t.Errorf("once more: %v", err)
	}
	if host := h.names.Host("desk"); len(host.Records) != 0 {
		t.Errorf("declared: %+v", host)
	}
}
