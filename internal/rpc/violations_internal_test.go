package rpc

import (
	"errors"
	"strings"
	"testing"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/internal/problem"
)

// A broken rule is told in people's words, with the field and what to do, not as
// the contract has it. White-box: the interceptors around it are Connect's.
func TestBrokenRulesInWords(t *testing.T) {
	spec := func(change func(*remotegpuv1.EnvironmentSpec)) *remotegpuv1.CreateEnvironmentRequest {
		s := &remotegpuv1.EnvironmentSpec{Image: "x"}
		change(s)
		return &remotegpuv1.CreateEnvironmentRequest{Name: "x", Spec: s}
	}
	for _, test := range []struct {
		request         proto.Message
		field, contains string
	}{
		{spec(func(s *remotegpuv1.EnvironmentSpec) {
			s.Mounts = []*remotegpuv1.Mount{{Type: remotegpuv1.MountType_MOUNT_TYPE_VOLUME, Source: "x", Target: "rel"}}
		}), "spec.mounts[0].target", `target "rel" is no absolute path`},
		{&remotegpuv1.CreateEnvironmentRequest{Name: "x"}, "spec", "spec is missing"},
		{spec(func(s *remotegpuv1.EnvironmentSpec) {
			s.HealthCheck = &remotegpuv1.HealthCheck{Check: &remotegpuv1.HealthCheck_Tcp{Tcp: &remotegpuv1.HealthTCP{}}}
		}), "spec.health_check.tcp.port", "port is 0; it must be at least 1 and at most 65535"},
		{&remotegpuv1.PullImageRequest{}, "reference", "reference is empty"},
		{&remotegpuv1.PullImageRequest{Reference: strings.Repeat("x", 5000)}, "reference", "it has more than"},
		{&remotegpuv1.StopEnvironmentRequest{Environment: "x", Timeout: durationpb.New(-1500 * time.Millisecond)}, "timeout", "timeout is -1.5s; it must be at least 0s and at most"},
		{&remotegpuv1.PruneImagesRequest{MinAge: durationpb.New(-time.Hour)}, "min_age", "min_age is -3600s; it must be at least 0s"},
		{&remotegpuv1.RunCommandRequest{Environment: "x"}, "argv", "argv is empty"},
		{&remotegpuv1.RunCommandRequest{Environment: "x", Argv: make([]string, 32769)}, "argv", "it has more than 32768 values"},
		{&remotegpuv1.ExecStart{Environment: "x", Argv: make([]string, 32769)}, "argv", "it has more than 32768 values"},
		{spec(func(s *remotegpuv1.EnvironmentSpec) { s.Command = make([]string, 32769) }), "spec.command", "it has more than 32768 values"},
		{&remotegpuv1.RunCommandRequest{Environment: "x", Argv: []string{"x"}, Timeout: durationpb.New(-time.Second)}, "timeout", "timeout is -1s; it must be"},
		{&remotegpuv1.ListEnvironmentsRequest{PageSize: -3}, "page_size", "page_size is -3; it must be"},
		{spec(func(s *remotegpuv1.EnvironmentSpec) { s.PullPolicy = 99 }), "spec.pull_policy", "pull_policy 99 is not known here"},
		{&remotegpuv1.CreateDNSRecordRequest{Environment: "x", Type: remotegpuv1.DNSRecordType_DNS_RECORD_TYPE_PTR}, "type", "type 6 is not for requests"},
		{
			&remotegpuv1.CreateDNSRecordRequest{Environment: "x", Type: remotegpuv1.DNSRecordType_DNS_RECORD_TYPE_TXT, Data: strings.Repeat("x", 1025)},
			"data", "it has more than 1024 bytes",
		},
	} {
		broken, ok := errors.AsType[*protovalidate.ValidationError](protovalidate.Validate(test.request))
		if !ok {
			t.Errorf("%T breaks no rule", test.request)
			continue
		}
		p := problem.Of(fieldProblems(broken))
		if p.Reason != problem.FieldInvalid || p.Field != test.field || !strings.Contains(p.Message, test.contains) {
			t.Errorf("%T: %+v, want %s with %q", test.request, p, test.field, test.contains)
		}
		if p.Hint == "" || strings.Contains(p.Hint, "rule") || strings.Contains(p.Message, "greater than") {
			t.Errorf("%T: raw words: %+v", test.request, p)
		}
	}
}
