package cli_test

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/gen/remotegpu/v1/remotegpuv1connect"
)

// dnsFake is the names of the fake.
type dnsFake struct {
	remotegpuv1connect.UnimplementedDNSServiceHandler
	fake *fake
}

func dnsRecords() []*remotegpuv1.DNSRecord {
	return []*remotegpuv1.DNSRecord{
		{Project: "default", Name: "demo", EnvironmentName: "demo", Type: remotegpuv1.DNSRecordType_DNS_RECORD_TYPE_A, Ttl: 5, Data: "192.0.2.7", Source: remotegpuv1.DNSRecordSource_DNS_RECORD_SOURCE_AUTO},
		{Id: "01REC", Project: "default", Name: "www", EnvironmentName: "demo", Type: remotegpuv1.DNSRecordType_DNS_RECORD_TYPE_CNAME, Ttl: 60, Source: remotegpuv1.DNSRecordSource_DNS_RECORD_SOURCE_USER},
	}
}

func (d *dnsFake) ListDNSRecords(_ context.Context, req *remotegpuv1.ListDNSRecordsRequest) (*remotegpuv1.ListDNSRecordsResponse, error) {
	return &remotegpuv1.ListDNSRecordsResponse{Records: dnsRecords()}, d.fake.got(req)
}

func (d *dnsFake) CreateDNSRecord(_ context.Context, req *remotegpuv1.CreateDNSRecordRequest) (*remotegpuv1.CreateDNSRecordResponse, error) {
	return &remotegpuv1.CreateDNSRecordResponse{Record: dnsRecords()[1], Warnings: []string{"found by the whole name"}}, d.fake.got(req)
}

func (d *dnsFake) DeleteDNSRecord(_ context.Context, req *remotegpuv1.DeleteDNSRecordRequest) (*remotegpuv1.DeleteDNSRecordResponse, error) {
	if err := d.fake.none(req.GetId()); err != nil {
		return nil, err
	}
	return &remotegpuv1.DeleteDNSRecordResponse{Id: req.GetId()}, d.fake.got(req)
}

func TestDNS(t *testing.T) {
	f := newFake(t)
	code, out, errs := f.run(t, "dns", "ls", "--env", "demo", "--source", "user")
	want := `
ID      PROJECT   NAME   TYPE    TTL   DATA        SOURCE   ENVIRONMENT
-       default   demo   A       5     192.0.2.7   auto     demo
01REC   default   www    CNAME   60                user     demo
`
	var lines []string
	for line := range strings.Lines(out) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	var wanted []string
	for line := range strings.Lines(strings.TrimSpace(want)) {
		wanted = append(wanted, strings.Join(strings.Fields(strings.ReplaceAll(line, "60                user", "60   -   user")), " "))
	}
	if diff := cmp.Diff(wanted, lines); diff != "" || code != 0 {
		t.Errorf("dns ls: exit %d (-want +got)\n%s%s", code, diff, errs)
	}
	if diff := cmp.Diff(&remotegpuv1.ListDNSRecordsRequest{
		Environment: "demo", Source: remotegpuv1.DNSRecordSource_DNS_RECORD_SOURCE_USER,
	}, f.last, protocmp.Transform(), protocmp.IgnoreFields(&remotegpuv1.ListDNSRecordsRequest{}, "page_size")); diff != "" {
		t.Errorf("dns ls (-want +got)\n%s", diff)
	}
	for _, test := range []struct {
		args string
		want *remotegpuv1.CreateDNSRecordRequest
	}{
		{"demo www", &remotegpuv1.CreateDNSRecordRequest{Name: "www", Type: remotegpuv1.DNSRecordType_DNS_RECORD_TYPE_CNAME}},
		{"demo @ txt two words", &remotegpuv1.CreateDNSRecordRequest{Name: "@", Type: remotegpuv1.DNSRecordType_DNS_RECORD_TYPE_TXT, Data: "two words"}},
		{"demo x.demo A 192.0.2.1 --ttl 60 -l a=b", &remotegpuv1.CreateDNSRecordRequest{
			Name: "x.demo", Type: remotegpuv1.DNSRecordType_DNS_RECORD_TYPE_A, Data: "192.0.2.1", Ttl: 60, Labels: map[string]string{"a": "b"},
		}},
	} {
		test.want.Environment, test.want.RequestId, test.want.Project = "demo", "r", "p"
		args := append([]string{"--project", "p", "dns", "add", "--request-id", "r"}, strings.Fields(test.args)...)
		if code, out, errs := f.run(t, args...); code != 0 || !strings.Contains(out, "01REC") || !strings.Contains(errs, "Warning: found by the whole name") {
			t.Errorf("dns add %s: exit %d\n%s%s", test.args, code, out, errs)
		}
		if diff := cmp.Diff(test.want, f.last, protocmp.Transform()); diff != "" {
			t.Errorf("dns add %s (-want +got)\n%s", test.args, diff)
		}
	}
	if code, out, _ := f.run(t, "dns", "rm", "01REC", "--etag", "1"); code != 0 || out != "01REC: removed\n" {
		t.Errorf("dns rm: exit %d %s", code, out)
	}
	for _, args := range [][]string{
		{"dns", "add", "demo"},
		{"dns", "add", "demo", "x", "mx", "y"},
		{"dns", "add", "demo", "x", "unspecified"},
		{"dns", "add", "demo", "x", "ptr", "foo"},
		{"dns", "add", "demo", "x", "a", "192.0.2.1", "--ttl", "0"},
		{"dns", "ls", "--source", "me"},
		{"dns", "rm"},
	} {
		if code, _, errs := f.run(t, args...); code != 2 || errs == "" || strings.Contains(errs, "ptr,") {
			t.Errorf("%v: exit %d %s", args, code, errs)
		}
	}
	if code, out, _ := f.run(t, "__complete", "dns", "rm", ""); code != 0 || !strings.Contains(out, "01REC\twww cname") {
		t.Errorf("completion: %d %s", code, out)
	}
}
