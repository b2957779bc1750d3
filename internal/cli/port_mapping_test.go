package cli_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func aMapping() *remotegpuv1.PortMapping {
	return &remotegpuv1.PortMapping{
		Id: "01PORT", Environment: "01ENV", ServiceType: remotegpuv1.ServiceType_SERVICE_TYPE_CUSTOM, InternalPort: 8080, ExternalPort: 10007,
		Protocol: remotegpuv1.Protocol_PROTOCOL_TCP, AllowedSources: []string{"203.0.113.0/24"},
	}
}

func (f *fake) GetPortMapping(_ context.Context, _ *remotegpuv1.GetPortMappingRequest) (*remotegpuv1.GetPortMappingResponse, error) {
	if f.mapping != nil {
		return &remotegpuv1.GetPortMappingResponse{PortMapping: f.mapping}, nil
	}
	return &remotegpuv1.GetPortMappingResponse{PortMapping: aMapping()}, nil
}

func (f *fake) CreatePortMapping(_ context.Context, r *remotegpuv1.CreatePortMappingRequest) (*remotegpuv1.CreatePortMappingResponse, error) {
	return &remotegpuv1.CreatePortMappingResponse{PortMapping: aMapping(), Operation: f.portOp}, f.got(r)
}

func (f *fake) UpdatePortMapping(_ context.Context, r *remotegpuv1.UpdatePortMappingRequest) (*remotegpuv1.UpdatePortMappingResponse, error) {
	return &remotegpuv1.UpdatePortMappingResponse{PortMapping: aMapping(), Operation: f.portOp}, f.got(r)
}

func (f *fake) DeletePortMapping(_ context.Context, r *remotegpuv1.DeletePortMappingRequest) (*remotegpuv1.DeletePortMappingResponse, error) {
	return &remotegpuv1.DeletePortMappingResponse{PortMapping: aMapping(), Operation: f.portOp}, f.got(r)
}

// Who does not wait gets the operation to follow, as from other commands.
func TestPortMappingsNobodyWaitsFor(t *testing.T) {
	f := newFake(t)
	f.portOp = operation(running, "", 0, 0)
	for _, args := range []string{"port add demo --internal 8080", "port update 01PORT --expires never", "port rm 01PORT"} {
		code, stdout, stderr := f.run(t, append(strings.Fields(args), "--no-wait")...)
		if code != 0 || stdout != "01OP\n" || !strings.Contains(stderr, "op watch 01OP") {
			t.Errorf("%s: code %d, %q, %s", args, code, stdout, stderr)
		}
		code, stdout, _ = f.run(t, append(strings.Fields(args), "--no-wait", "-o", "json")...)
		var op struct{ ID, State string }
		if err := json.Unmarshal([]byte(stdout), &op); code != 0 || err != nil || op.ID != "01OP" || op.State != "OPERATION_STATE_RUNNING" {
			t.Errorf("%s in JSON: code %d, %s, %v", args, code, stdout, err)
		}
	}
}

func TestPortMappingRequests(t *testing.T) {
	f := newFake(t)
	for _, test := range []struct {
		args, says string
		want       proto.Message
	}{
		{
			"port add demo --internal 8080 --external 10007 --udp --allow 203.0.113.0/24,198.51.100.7 --expires 2h --description d --request-id r",
			"demo: host port 10007 leads to port 8080, for 203.0.113.0/24",
			&remotegpuv1.CreatePortMappingRequest{
				RequestId: "r", Environment: "demo", ServiceType: remotegpuv1.ServiceType_SERVICE_TYPE_CUSTOM, InternalPort: 8080, ExternalPort: 10007,
				Protocol: remotegpuv1.Protocol_PROTOCOL_UDP, Description: "d", AllowedSources: []string{"203.0.113.0/24", "198.51.100.7"},
				ExpiresIn: durationpb.New(2 * time.Hour),
			},
		},
		{
			"port add demo --service ssh --request-id r", "demo: host port",
			&remotegpuv1.CreatePortMappingRequest{RequestId: "r", Environment: "demo", ServiceType: remotegpuv1.ServiceType_SERVICE_TYPE_SSH},
		},
		{
			"port update 01PORT --allow 10.0.0.0/8 --expires 90m --request-id r", "host port 10007: nothing to do",
			&remotegpuv1.UpdatePortMappingRequest{
				RequestId: "r", Id: "01PORT", AllowedSources: []string{"10.0.0.0/8"}, ExpiresIn: durationpb.New(90 * time.Minute),
				UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"allowed_sources", "expires_in"}},
			},
		},
		{
			"port update 01PORT --allow-default --expires never --request-id r", "host port 10007",
			&remotegpuv1.UpdatePortMappingRequest{
				RequestId: "r", Id: "01PORT", UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"allowed_sources", "expires_at"}},
			},
		},
		{
			"port update 01PORT --expires 2030-01-01T00:00:00Z --request-id r", "host port 10007",
			&remotegpuv1.UpdatePortMappingRequest{
				RequestId: "r", Id: "01PORT", ExpiresAt: timestamppb.New(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)),
				UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"expires_at"}},
			},
		},
		{
			"port add demo --service ssh --expires 3d12h --request-id r", "demo: host port",
			&remotegpuv1.CreatePortMappingRequest{
				RequestId: "r", Environment: "demo", ServiceType: remotegpuv1.ServiceType_SERVICE_TYPE_SSH, ExpiresIn: durationpb.New(84 * time.Hour),
			},
		},
		{"port rm 01PORT --request-id r", "host port 10007: released", &remotegpuv1.DeletePortMappingRequest{RequestId: "r", Id: "01PORT"}},
		{"port rm 10009 --request-id r", "host port 10007: released", &remotegpuv1.DeletePortMappingRequest{RequestId: "r", Id: "01PORT"}},
		{
			"port ls --external 10007 --at 2026-11-26T14:30:00Z", "203.0.113.0/24", nil,
		},
		{"port ls --external 10007 --at 10m", "203.0.113.0/24", nil},
		{"port get 01PORT", "10007/tcp", nil},
	} {
		f.env.GetPortMappings()[0].AllowedSources = []string{"203.0.113.0/24"}
		code, stdout, stderr := f.run(t, strings.Fields(test.args)...)
		if code != 0 || !strings.Contains(stdout, test.says) {
			t.Errorf("%s: code %d, %s%s, want %q", test.args, code, stdout, stderr, test.says)
		}
		if diff := cmp.Diff(test.want, f.last, protocmp.Transform()); test.want != nil && diff != "" {
			t.Errorf("%s:\n%s", test.args, diff)
		}
	}
	if code, _, stderr := f.run(t, "port", "get", "10009"); code != 3 || !strings.Contains(stderr, "is not published") {
		t.Errorf("one that is not held: code %d, %s", code, stderr)
	}
	for _, args := range []string{
		"port add demo --expires soon", "port add demo --service web", "port add", "port update 01PORT", "port update 01PORT --expires -2h",
		"port update 01PORT --allow 10.0.0.0/8 --allow-default", "port ls --at yesterday", "port get 10007/sctp", "port rm 0",
		"port add demo --expires 3x", "port add demo --expires 1d-2h", "port add demo --service ssh --udp",
	} {
		if code, _, stderr := f.run(t, strings.Fields(args)...); code != 2 || !strings.Contains(stderr, "Try: ") {
			t.Errorf("%s: code %d, %s", args, code, stderr)
		}
	}
}

// A variable that is not set must not open a port to everybody, or for ever.
func TestEmptyTermsAreRefused(t *testing.T) {
	f := newFake(t)
	for _, args := range [][]string{
		{"port", "add", "demo", "--service", "ssh", "--allow", ""},
		{"port", "add", "demo", "--service", "ssh", "--expires", ""},
		{"port", "update", "10007", "--allow", ""},
		{"port", "update", "10007", "--allow", "", "--allow", "203.0.113.0/24"},
		{"port", "update", "10007", "--allow", "203.0.113.0/24,"},
		{"port", "update", "10007", "--allow", " "},
		{"port", "update", "10007", "--expires", ""},
	} {
		code, _, stderr := f.run(t, args...)
		if code != 2 || !strings.Contains(stderr, "Try: ") || f.last != nil {
			t.Errorf("%q: code %d, %s, sent %v", args, code, stderr, f.last)
		}
		f.last = nil
	}
}

// What is wrong with a port is said, not what it might have been.
func TestPortsSayWhatIsWrong(t *testing.T) {
	f := newFake(t)
	for port, says := range map[string]string{
		"15000:":               "nothing stands on one side of a colon",
		"":                     "neither a service nor a port",
		"70000:80":             "port 70000 is above 65535",
		"ssh:70000":            "port 70000 is above 65535",
		"8000-8005":            "one port each",
		"ssh:vnc":              "two services",
		"nope":                 "\"nope\" is none of ssh",
		"ssh/udp":              "over TCP",
		"ssh,expires=tomorrow": "nor never",
	} {
		code, _, stderr := f.run(t, "env", "create", "x", "--image", "i", "-p", port)
		if code != 2 || !strings.Contains(stderr, says) || !strings.Contains(stderr, "Try: ") {
			t.Errorf("-p %s: code %d, %s", port, code, stderr)
		}
	}
	code, _, stderr := f.run(t, "port", "update", "01PORT", "--allow", "10.0.0.0/8", "--allow-default")
	if code != 2 || !strings.Contains(stderr, "contradict each other") {
		t.Errorf("a list and none: code %d, %s", code, stderr)
	}
}

// Whatever names an end reads it the same way.
func TestExpiryIsReadAlike(t *testing.T) {
	f := newFake(t)
	f.ops = []*remotegpuv1.Operation{operation(succeeded, "", 0, 0)}
	for _, end := range []string{"90m", "3d", "1d12h", "2030-01-01T00:00:00Z", "2030-01-01 14:30", "never"} {
		for _, args := range [][]string{
			{"port", "add", "demo", "--service", "ssh", "--expires", end},
			{"port", "update", "01PORT", "--expires", end},
			{"env", "create", "x", "--image", "i", "-p", "ssh,expires=" + end},
			{"env", "update", "demo", "-p", "8080,expires=" + end},
		} {
			if code, _, stderr := f.run(t, args...); code != 0 {
				t.Errorf("%q: code %d, %s", args, code, stderr)
			}
		}
	}
}

// A host port names what is in the project, as a name does.
func TestHostPortsObeyTheProject(t *testing.T) {
	f := newFake(t)
	for _, args := range []string{"port rm 10081", "port get 10081", "port update 10081 --expires never"} {
		code, _, stderr := f.run(t, strings.Fields(args)...)
		if code != 3 || !strings.Contains(stderr, "belongs to project other, not to default") || !strings.Contains(stderr, "--project other") {
			t.Errorf("%s: code %d, %s", args, code, stderr)
		}
		if _, asked := f.last.(*remotegpuv1.ListPortMappingsRequest); !asked {
			t.Errorf("%s: sent %v", args, f.last)
		}
		if code, _, stderr := f.run(t, strings.Fields("--project other "+args)...); code != 0 {
			t.Errorf("%s in its project: code %d, %s", args, code, stderr)
		}
	}
}

// Whether the world reaches a port is said wherever the port is.
func TestReachIsShown(t *testing.T) {
	f := newFake(t)
	for reach, says := range map[remotegpuv1.PortReach]string{
		remotegpuv1.PortReach_PORT_REACH_EVERYBODY: "everybody",
		remotegpuv1.PortReach_PORT_REACH_NODE:      "host and environments only",
		remotegpuv1.PortReach_PORT_REACH_SOURCES:   "203.0.113.0/24",
	} {
		m := f.env.GetPortMappings()[0]
		m.Reach, m.AllowedSources = reach, nil
		if reach == remotegpuv1.PortReach_PORT_REACH_SOURCES {
			m.AllowedSources = []string{"203.0.113.0/24"}
		}
		f.mapping = m
		for _, args := range []string{"port ls", "port get 01PORT", "port add demo --service ssh", "env get demo"} {
			if code, stdout, stderr := f.run(t, strings.Fields(args)...); code != 0 || !strings.Contains(stdout, says) {
				t.Errorf("%s of %v: code %d, %s%s", args, reach, code, stdout, stderr)
			}
		}
	}
}

// Many ports make no line that is wider than a terminal.
func TestManyPortsAreShortened(t *testing.T) {
	f := newFake(t)
	first := f.env.GetPortMappings()[0]
	for len(f.env.GetPortMappings()) < 25 {
		f.env.PortMappings = append(f.env.PortMappings, first)
	}
	_, stdout, _ := f.run(t, "env", "ls", "--limit", "1")
	if !strings.Contains(stdout, "22000->22/tcp,22000->22/tcp,22000->22/tcp,+22 ") {
		t.Error(stdout)
	}
}

// What selects by nothing selects nothing, rather than everything.
func TestEmptyFiltersAreRefused(t *testing.T) {
	f := newFake(t)
	for _, args := range [][]string{
		{"port", "ls", "--env", ""},
		{"port", "ls", "--service", ""},
		{"port", "ls", "--at", ""},
		{"port", "ls", "--external", "0"},
		{"dns", "ls", "--env", ""},
		{"dns", "ls", "--source", ""},
		{"dns", "add", "demo", "", "a", "192.0.2.1"},
		{"env", "ls", "--state", ""},
		{"env", "ls", "--selector", ""},
		{"env", "watch", "--selector", ""},
		{"env", "logs", "demo", "--since", ""},
		{"env", "logs", "demo", "--until", ""},
		{"env", "snapshot", "ls", "--selector", ""},
		{"env", "snapshot", "ls", ""},
		{"gpu", "leases", ""},
		{"op", "ls", "--target", ""},
		{"op", "ls", "--kind", ""},
		{"op", "ls", "--state", ""},
		{"dns", "add", "demo", "www", ""},
	} {
		code, _, stderr := f.run(t, args...)
		if code != 2 || !strings.Contains(stderr, "Try: ") || f.last != nil {
			t.Errorf("%q: code %d, %s, sent %v", args, code, stderr, f.last)
		}
		f.last = nil
	}
}

func TestPoolRanges(t *testing.T) {
	f := newFake(t)
	for text, says := range map[string]string{
		"22000": "its last port is missing", "22000-70000": "port 70000 is above 65535", "a-b": `"a" is no port`,
		"0-10": `"0" is no port`, "22010-22000": "ends before it begins", "": "its last port is missing",
	} {
		code, _, stderr := f.run(t, "port", "pool", "set", "ssh", text)
		if code != 2 || !strings.Contains(stderr, says) || !strings.Contains(stderr, "Try: ") || f.last != nil {
			t.Errorf("%q: code %d, %s", text, code, stderr)
		}
	}
	code, stdout, stderr := f.run(t, "port", "pool", "set", "ssh", "22000-22999")
	if code != 0 || !strings.Contains(stdout, "22000-22999") || stderr != "Warning: the pools overlap\n" {
		t.Errorf("code %d, %s%s", code, stdout, stderr)
	}
}
