package rpc

import (
	"context"
	"encoding/base64"
	"strings"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/dns"
	"github.com/remotegpu/remotegpu/runtime"
)

type dnsService services

var dnsRecordTypes = newEnum(map[remotegpuv1.DNSRecordType]dns.Type{
	remotegpuv1.DNSRecordType_DNS_RECORD_TYPE_A:     dns.A,
	remotegpuv1.DNSRecordType_DNS_RECORD_TYPE_AAAA:  dns.AAAA,
	remotegpuv1.DNSRecordType_DNS_RECORD_TYPE_CNAME: dns.CNAME,
	remotegpuv1.DNSRecordType_DNS_RECORD_TYPE_TXT:   dns.TXT,
	remotegpuv1.DNSRecordType_DNS_RECORD_TYPE_SRV:   dns.SRV,
	remotegpuv1.DNSRecordType_DNS_RECORD_TYPE_PTR:   runtime.PTR,
})

// ListDNSRecords implements the RPC.
func (s *dnsService) ListDNSRecords(ctx context.Context, req *remotegpuv1.ListDNSRecordsRequest) (*remotegpuv1.ListDNSRecordsResponse, error) {
	source := req.GetSource()
	records, err := s.cfg.Manager.ListDNSRecords(ctx, runtime.DNSListing{
		Project: req.GetProject(), Environment: req.GetEnvironment(),
		Automatic: source != remotegpuv1.DNSRecordSource_DNS_RECORD_SOURCE_USER,
		Added:     source != remotegpuv1.DNSRecordSource_DNS_RECORD_SOURCE_AUTO,
	})
	if err != nil {
		return nil, err
	}
	after, err := base64.RawURLEncoding.DecodeString(req.GetPageToken())
	if err != nil || len(after) > 0 && strings.Count(string(after), "\x00") != 4 {
		return nil, problem.New(problem.PageTokenInvalid, "the page token is not one of this list").WithField("page_token").
			WithHint("use next_page_token of the page before, or leave it empty")
	}
	res, size := &remotegpuv1.ListDNSRecordsResponse{}, pageSize(req.GetPageSize())
	var last string
	for _, record := range records {
		key := strings.Join([]string{record.Project, record.Owner(), string(record.Type), record.Data, record.ID}, "\x00")
		if len(after) > 0 && key <= string(after) {
			continue
		}
		if len(res.Records) == size {
			res.NextPageToken = base64.RawURLEncoding.EncodeToString([]byte(last))
			break
		}
		res.Records, last = append(res.Records, s.toRecord(record)), key
	}
	return res, nil
}

// GetDNSRecord implements the RPC.
func (s *dnsService) GetDNSRecord(ctx context.Context, req *remotegpuv1.GetDNSRecordRequest) (*remotegpuv1.GetDNSRecordResponse, error) {
	record, err := s.cfg.Manager.DNSRecord(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.GetDNSRecordResponse{Record: s.toRecord(record)}, nil
}

// CreateDNSRecord implements the RPC.
func (s *dnsService) CreateDNSRecord(ctx context.Context, req *remotegpuv1.CreateDNSRecordRequest) (*remotegpuv1.CreateDNSRecordResponse, error) {
	record, err := s.cfg.Manager.CreateDNSRecord(ctx, runtime.CreateDNSRecordRequest{
		RequestID: req.GetRequestId(), Project: req.GetProject(), Environment: req.GetEnvironment(), Name: req.GetName(),
		Type: dnsRecordTypes.toDomain[req.GetType()], TTL: req.GetTtl(), Data: req.GetData(), Labels: req.GetLabels(),
	})
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.CreateDNSRecordResponse{Record: s.toRecord(record), Warnings: record.Warnings}, nil
}

// DeleteDNSRecord implements the RPC.
func (s *dnsService) DeleteDNSRecord(ctx context.Context, req *remotegpuv1.DeleteDNSRecordRequest) (*remotegpuv1.DeleteDNSRecordResponse, error) {
	if err := s.cfg.Manager.DeleteDNSRecord(ctx, req.GetId(), req.GetEtag()); err != nil {
		return nil, err
	}
	return &remotegpuv1.DeleteDNSRecordResponse{Id: req.GetId()}, nil
}

func (s *dnsService) toRecord(r *runtime.DNSRecord) *remotegpuv1.DNSRecord {
	message := &remotegpuv1.DNSRecord{
		Id: r.ID, Project: r.Project, Node: r.Node, Labels: r.Labels, Environment: r.EnvID, EnvironmentName: r.EnvName,
		Name: r.Owner(), FullNames: s.cfg.Manager.DNSNames(r), Type: dnsRecordTypes.toProto[r.Type], Ttl: r.TTL, Data: r.Data,
		Source: remotegpuv1.DNSRecordSource_DNS_RECORD_SOURCE_AUTO, CreatedAt: timestamp(r.CreatedAt),
	}
	if r.ID != "" {
		message.Source, message.Etag = remotegpuv1.DNSRecordSource_DNS_RECORD_SOURCE_USER, etag(r.Revision)
	}
	return message
}
