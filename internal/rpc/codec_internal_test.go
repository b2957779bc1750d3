package rpc

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// White-box because the codec is below the server that a caller sees; the test
// of bad input of test/e2e has it through the API.
func TestMasksByEitherName(t *testing.T) {
	for body, want := range map[string][]string{
		`{"updateMask":"spec.healthCheck"}`:                                               {"spec.health_check"},
		`{"updateMask":"spec.health_check"}`:                                              {"spec.health_check"},
		` { "update_mask" : "spec.resources.cpu_millis,spec.resources.memoryBytes" } `:    {"spec.resources.cpu_millis", "spec.resources.memory_bytes"},
		`{"updateMask":"spec.health\u005fcheck","spec":{"env":{"update_mask":"a_b"}}}`:    {"spec.health_check"},
		`{"updateMask":"labels,spec.allow_new_privileges","labels":{"updateMask":"a_b"}}`: {"labels", "spec.allow_new_privileges"},
		`{"updateMask":""}`:   nil,
		`{"updateMask":null}`: nil,
		`{}`:                  nil,
	} {
		request := &remotegpuv1.UpdateEnvironmentRequest{}
		if err := newJSONCodec().UnmarshalRead(t.Context(), strings.NewReader(body), request); err != nil {
			t.Errorf("%s: %v", body, err)
			continue
		}
		if got := request.GetUpdateMask().GetPaths(); !slices.Equal(got, want) {
			t.Errorf("%s: paths %q, want %q", body, got, want)
		}
		for _, kept := range []string{request.GetSpec().GetEnv()["update_mask"], request.GetLabels()["updateMask"]} {
			if kept != "" && kept != "a_b" {
				t.Errorf("%s: what is no mask became %q", body, kept)
			}
		}
	}
	for _, body := range []string{
		``, `[]`, `{`, `{"updateMask":`, `{"updateMask":5}`, `{"updateMask":"spec.cpu__millis"}`, `{"updateMask":"spec.a_"}`, `{"updateMask":"spec.a_B"}`,
		`{"updateMask":"a b"}`, `{"updateMask":"labels","updateMask":"labels"}`, `{"updateMask":"labels","update_mask":"labels"}`,
		`{"environment":"a","environment":"b","updateMask":"spec.health_check"}`, `{"updateMask":"spec.health_check"}{}`, `{"updateMask":"spec.health_check"}x`,
		`{"updateMask":"spec.health_check","unknown":1}`,
	} {
		if err := newJSONCodec().UnmarshalRead(t.Context(), strings.NewReader(body), &remotegpuv1.UpdateEnvironmentRequest{}); err == nil {
			t.Errorf("%s is taken", body)
		}
	}
	request := &remotegpuv1.UpdatePortMappingRequest{}
	body := `{"id":"x","update_mask":"allowed_sources","allowed_sources":["10.0.0.0/8"]}`
	if err := newJSONCodec().UnmarshalRead(t.Context(), strings.NewReader(body), request); err != nil {
		t.Fatal(err)
	}
	if got := request.GetUpdateMask().GetPaths(); !slices.Equal(got, []string{"allowed_sources"}) || !slices.Equal(request.GetAllowedSources(), []string{"10.0.0.0/8"}) {
		t.Errorf("%s: %v", body, request)
	}
}

// FuzzMasks: a request means the same with masks rewritten as without, where it
// means anything without.
func FuzzMasks(f *testing.F) {
	for _, body := range []string{`{"updateMask":"spec.healthCheck,labels","labels":{"a":"é\u0000"}}`, `{"update_mask" : "spec.env" , "spec":{"env":{"a_b":"\ud83d\ude00"}}}`} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		codec := newJSONCodec()
		plain, masked := &remotegpuv1.UpdateEnvironmentRequest{}, &remotegpuv1.UpdateEnvironmentRequest{}
		if codec.JSONCodec.UnmarshalRead(t.Context(), strings.NewReader(body), plain) != nil {
			return
		}
		if err := codec.UnmarshalRead(t.Context(), strings.NewReader(body), masked); err != nil || !proto.Equal(plain, masked) {
			t.Errorf("%q: %v, then %v (%v)", body, plain, masked, err)
		}
	})
}
