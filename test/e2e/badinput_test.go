package e2e_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// What is wrong with a request is said on the wire: code, reason, the field at
// fault and what to do. Nothing is left of it.
func TestBadInput(t *testing.T) {
	n := Start(t, usual, "")
	const create, run = "EnvironmentService/CreateEnvironment", "EnvironmentService/RunCommand"
	var jupyter struct {
		Pool struct {
			Etag string `json:"etag"`
		} `json:"pool"`
	}
	n.call(t, "PortService/UpdatePortPool", `{"service_type":"SERVICE_TYPE_JUPYTER","first_port":9000,"last_port":9000}`, &jupyter)
	n.call(t, create, `{"name":"taken","wait":"60s","request_id":"used","spec":{"image":"`+n.Image+`","ports":[{"service_type":"SERVICE_TYPE_JUPYTER"}]}}`, nil)
	n.call(t, create, `{"name":"halted","wait":"60s","spec":{"image":"`+n.Image+`"}}`, nil)
	n.call(t, "EnvironmentService/StopEnvironment", `{"environment":"halted","timeout":"0s","wait":"60s"}`, nil)
	spec := func(name, more string) string {
		return fmt.Sprintf(`{"name":%q,"wait":"60s","spec":{"image":%q%s}}`, name, n.Image, more)
	}
	before := n.operations(t)
	tests := []struct {
		name, method, body string
		status             int
		code, reason       string
		fields             []string
	}{
		{"unknown image, never pulled", create, `{"name":"x","spec":{"image":"remotegpu/absent","pull_policy":"PULL_POLICY_NEVER"}}`, 404, "not_found", "IMAGE_NOT_FOUND", []string{"spec.image"}},
		{"registry that does not answer", create, `{"name":"x","spec":{"image":"127.0.0.1:1/absent:1"}}`, 503, "unavailable", "REGISTRY_UNAVAILABLE", []string{"spec.image"}},
		{"bad image reference", create, `{"name":"x","spec":{"image":"UPPER CASE"}}`, 400, "invalid_argument", "IMAGE_REFERENCE_INVALID", []string{"spec.image"}},
		{"no image", create, `{"name":"x"}`, 400, "invalid_argument", "FIELD_INVALID", []string{"spec"}},
		{"kind of operations that there is not", "OperationService/ListOperations", `{"kinds":["image.pull","x"]}`, 400, "invalid_argument", "FIELD_INVALID", []string{"kinds[1]"}},
		{"label that no selector can name", "EnvironmentService/UpdateEnvironment", `{"environment":"taken","labels":{"a b":"c"}}`, 400, "invalid_argument", "FIELD_INVALID", []string{`labels["a b"]`}},
		// Paths of masks are written as in answers, or as JSON names fields: both
		// come as far as the name, which is wrong.
		{"mask by the names of the proto file", "EnvironmentService/UpdateEnvironment", `{"environment":"absent","update_mask":"spec.health_check,spec.resources.cpu_millis"}`, 404, "not_found", "ENV_NOT_FOUND", []string{"environment"}},
		{"mask by the names of JSON", "EnvironmentService/UpdateEnvironment", `{"environment":"absent","updateMask":"spec.healthCheck,spec.resources.cpuMillis"}`, 404, "not_found", "ENV_NOT_FOUND", []string{"environment"}},
		{"mask with what cannot be changed", "EnvironmentService/UpdateEnvironment", `{"environment":"taken","updateMask":"spec.pull_policy"}`, 400, "invalid_argument", "FIELD_INVALID", []string{"update_mask"}},
		{"mask that is none", "EnvironmentService/UpdateEnvironment", `{"environment":"taken","updateMask":"spec health"}`, 400, "invalid_argument", "REQUEST_MALFORMED", nil},
		{"bad name", create, spec("Not_A_Label", ""), 400, "invalid_argument", "ENV_NAME_INVALID", []string{"name"}},
		{"name that exists", create, spec("taken", ""), 409, "already_exists", "ENV_NAME_EXISTS", []string{"name"}},
		{"port outside its pool", create, spec("x", `,"ports":[{"service_type":"SERVICE_TYPE_SSH","external_port":9999}]`), 400, "invalid_argument", "PORT_OUTSIDE_POOL", []string{"spec.ports[0].external_port"}},
		{"exhausted pool", create, spec("x", `,"ports":[{"service_type":"SERVICE_TYPE_SSH"},{"service_type":"SERVICE_TYPE_JUPYTER"}]`), 429, "resource_exhausted", "PORT_POOL_EXHAUSTED", []string{"spec.ports[1]"}},
		{"host port that is taken", create, spec("x", `,"ports":[{"service_type":"SERVICE_TYPE_JUPYTER","external_port":9000}]`), 409, "already_exists", "PORT_TAKEN", []string{"spec.ports[0].external_port"}},
		{"port range upside down", "PortService/UpdatePortPool", `{"service_type":"SERVICE_TYPE_SSH","first_port":23000,"last_port":22000}`, 400, "invalid_argument", "PORT_RANGE_INVALID", []string{"last_port"}},
		{"stale etag of a pool", "PortService/UpdatePortPool", `{"service_type":"SERVICE_TYPE_JUPYTER","first_port":9000,"last_port":9001,"etag":"` + jupyter.Pool.Etag + `7"}`, 409, "aborted", "ETAG_MISMATCH", []string{"etag"}},
		{"less than 16 MiB", create, spec("x", `,"resources":{"memory_bytes":16777215}`), 400, "invalid_argument", "MEMORY_TOO_SMALL", []string{"spec.resources.memory_bytes"}},
		{"less than the image needs", create, spec("x", `,"resources":{"memory_bytes":33554431}`), 400, "invalid_argument", "MEMORY_TOO_SMALL", []string{"spec.resources.memory_bytes"}},
		{"mount outside the allowed roots", create, spec("x", `,"mounts":[{"type":"MOUNT_TYPE_BIND","source":"/etc","target":"/x"}]`), 400, "invalid_argument", "MOUNT_NOT_ALLOWED", []string{"spec.mounts[0].source"}},
		{"reserved variable", create, spec("x", `,"env":{"REMOTEGPU_X":"1"}`), 400, "invalid_argument", "ENV_VARIABLE_RESERVED", []string{`spec.env["REMOTEGPU_X"]`}},
		{
			"much at once", create,
			spec("-x-", `,"workdir":"relative","resources":{"memory_bytes":1},"env":{"1x":""}`), 400, "invalid_argument", "ENV_NAME_INVALID",
			[]string{"name", "spec.workdir", `spec.env["1x"]`, "spec.resources.memory_bytes"},
		},
		{"5 MiB", create, spec("x", `,"env":{"X":"`+strings.Repeat("x", 5<<20)+`"}`), 429, "resource_exhausted", "REQUEST_TOO_LARGE", nil},
		{"malformed JSON", create, `{"name":`, 400, "invalid_argument", "REQUEST_MALFORMED", nil},
		{"unknown field", create, spec("x", `,"imgae":"y"`), 400, "invalid_argument", "REQUEST_MALFORMED", nil},
		{"wrong type", create, `{"name":5}`, 400, "invalid_argument", "REQUEST_MALFORMED", nil},
		{"reused request id", create, `{"name":"x","request_id":"used","spec":{"image":"` + n.Image + `"}}`, 409, "already_exists", "REQUEST_ID_REUSED", []string{"request_id"}},
		{"delete of what is absent", "EnvironmentService/DeleteEnvironment", `{"environment":"absent"}`, 404, "not_found", "ENV_NOT_FOUND", []string{"environment"}},
		{"delete of what runs", "EnvironmentService/DeleteEnvironment", `{"environment":"taken"}`, 400, "failed_precondition", "ENV_RUNNING", []string{"force"}},
		{"wrong etag", "EnvironmentService/StopEnvironment", `{"environment":"taken","etag":"999"}`, 409, "aborted", "ETAG_MISMATCH", []string{"etag"}},
		{"bad page token", "EnvironmentService/ListEnvironments", `{"page_token":"nonsense"}`, 400, "invalid_argument", "PAGE_TOKEN_INVALID", []string{"page_token"}},
		{"bad label selector", "EnvironmentService/ListEnvironments", `{"label_selector":"a b=c"}`, 400, "invalid_argument", "FIELD_INVALID", []string{"label_selector"}},
		{"command that is absent", run, `{"environment":"taken","argv":["/bin/absent"]}`, 400, "invalid_argument", "COMMAND_NOT_FOUND", []string{"argv"}},
		{"user that is unknown", run, `{"environment":"taken","argv":["true"],"user":"nobody-here"}`, 400, "invalid_argument", "USER_NOT_FOUND", []string{"user"}},
		{"command in a directory that is absent", run, `{"environment":"taken","argv":["true"],"workdir":"/absent"}`, 400, "failed_precondition", "PROCESS_START_FAILED", []string{"workdir"}},
		{"command in a relative directory", run, `{"environment":"taken","argv":["true"],"workdir":"tmp"}`, 400, "invalid_argument", "FIELD_INVALID", []string{"workdir"}},
		{"command in what is stopped", run, `{"environment":"halted","argv":["true"]}`, 400, "failed_precondition", "ENV_NOT_RUNNING", []string{"environment"}},
		{"command that takes too long", run, `{"environment":"taken","argv":["testprog","sleep"],"timeout":"0.3s"}`, 504, "deadline_exceeded", "COMMAND_TIMEOUT", []string{"timeout"}},
		{"desktop of what has none", "DesktopService/GetScreenshot", `{"environment":"taken"}`, 400, "failed_precondition", "DESKTOP_ABSENT", []string{"environment"}},
		{"operation that is absent", "OperationService/GetOperation", `{"id":"absent"}`, 404, "not_found", "OPERATION_NOT_FOUND", []string{"id"}},
		{"port that nobody may have", "PortService/CreatePortMapping", `{"environment":"taken","service_type":"SERVICE_TYPE_CUSTOM","internal_port":80,"external_port":11434}`, 400, "invalid_argument", "PORT_DENIED", []string{"external_port"}},
		{"sources that are none", "PortService/CreatePortMapping", `{"environment":"taken","service_type":"SERVICE_TYPE_CUSTOM","internal_port":80,"allowed_sources":["10.0.0.0/8","10.0.0.1/8","::1"]}`, 400, "invalid_argument", "FIELD_INVALID", []string{"allowed_sources[1]", "allowed_sources[2]"}},
		{"end that is over", create, spec("x", `,"ports":[{"service_type":"SERVICE_TYPE_SSH","expires_at":"2020-01-01T00:00:00Z"}]`), 400, "invalid_argument", "FIELD_INVALID", []string{"spec.ports[0].expires_at"}},
		{"port of what is absent", "PortService/CreatePortMapping", `{"environment":"absent","service_type":"SERVICE_TYPE_SSH"}`, 404, "not_found", "ENV_NOT_FOUND", []string{"environment"}},
		{"mapping that is absent", "PortService/DeletePortMapping", `{"id":"absent"}`, 404, "not_found", "PORT_MAPPING_NOT_FOUND", []string{"id"}},
		{"image that is used", "ImageService/DeleteImage", `{"reference":"` + n.Image + `"}`, 400, "failed_precondition", "IMAGE_IN_USE", []string{"reference"}},
		{"image source that is absent", "ImageService/BuildImage", `{"source":"absent"}`, 400, "failed_precondition", "BUILDKIT_NOT_CONFIGURED", []string{"source"}},
	}
	table := &strings.Builder{}
	for _, test := range tests {
		answer := n.curl(t, test.method, test.body)
		slices.Sort(answer.Fields)
		slices.Sort(test.fields)
		fmt.Fprintf(table, "%-32s %d %-19s %-23s %s\n    %.160s\n    Try: %.160s\n", test.name, answer.Status, answer.Code, answer.Reason,
			strings.Join(answer.Fields, " "), answer.Message, answer.Hint)
		if answer.Status != test.status || answer.Code != test.code || answer.Reason != test.reason || answer.Hint == "" || !slices.Equal(answer.Fields, test.fields) {
			t.Errorf("%s: got %d %s %s %q, hint %q; want %d %s %s %q and a hint", test.name, answer.Status, answer.Code, answer.Reason,
				answer.Fields, answer.Hint, test.status, test.code, test.reason, test.fields)
		}
	}
	t.Logf("\n%s", table)
	if strings.Contains(table.String(), "rpc error") || strings.Contains(table.String(), "OCI runtime") {
		t.Error("a message has what a runtime says to its own caller")
	}
	if _, said, code := n.CLI(t, "env", "exec", "-u", "nobody-here", "taken", "--", "true"); code == 0 || !strings.Contains(said, "field user") {
		t.Errorf("exec as nobody: code %d\n%s", code, said)
	}
	if after := n.operations(t); len(after) != len(before) {
		t.Errorf("refused requests left operations: %d before, %d after", len(before), len(after))
	}
	for _, env := range n.List(t) {
		if env.Name != "taken" && env.Name != "halted" {
			t.Errorf("left behind: %+v", env)
		}
		n.Must(t, "env", "rm", "--force", "--grace", "0s", env.ID)
	}
	for _, op := range n.operations(t) {
		if op.State != "OPERATION_STATE_SUCCEEDED" {
			t.Errorf("left behind: %+v", op)
		}
	}
	n.NothingLeft(t)
}

type listedOperation struct {
	ID, Kind, Target, State string
	CancelRequested         bool
	StartedAt, FinishedAt   time.Time
}

func (n *Node) operations(tb testing.TB) []listedOperation {
	tb.Helper()
	var list struct{ Operations []listedOperation }
	n.call(tb, "OperationService/ListOperations", `{"page_size":500}`, &list)
	return list.Operations
}
