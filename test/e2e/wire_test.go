package e2e_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// Answer is what the API answers to a call with JSON.
type Answer struct {
	Status int // of HTTP
	Body   string
	// Of errors:
	Code, Reason, Hint string
	Message            string
	Fields             []string
}

// curl calls a method with curl and JSON: at the unix socket, or at what args
// say.
func (n *Node) curl(tb testing.TB, method, body string, args ...string) Answer {
	tb.Helper()
	base := "http://127.0.0.1:7480/remotegpu.v1."
	if len(args) == 0 {
		args = []string{"--unix-socket", n.Socket()}
	}
	args = append(args, "-sS", "--max-time", "60", "-H", "Content-Type: application/json", "-H", "Expect:",
		"--data-binary", "@-", "-w", "\n%{http_code}", base+method)
	cmd := n.command(tb, "curl", args...)
	cmd.Stdin = strings.NewReader(body)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	text, status, found := cutLast(string(out), "\n")
	answer := Answer{Body: text}
	if answer.Status, _ = strconv.Atoi(status); !found || answer.Status == 0 {
		tb.Fatalf("curl %s: %v\n%s%s", method, err, out, errs.String())
	}
	answer.readError(tb)
	return answer
}

func cutLast(text, separator string) (before, after string, found bool) {
	i := strings.LastIndex(text, separator)
	if i < 0 {
		return text, "", false
	}
	return text[:i], text[i+len(separator):], true
}

// readError reads an error as Connect writes it.
func (a *Answer) readError(tb testing.TB) {
	tb.Helper()
	if a.Status == 200 {
		return
	}
	var failure struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Details []struct {
			Type  string `json:"type"`
			Value string `json:"value"`
		} `json:"details"`
	}
	if err := json.Unmarshal([]byte(a.Body), &failure); err != nil {
		tb.Errorf("an error with HTTP status %d is no JSON: %v\n%s", a.Status, err, a.Body)
		return
	}
	a.Code, a.Message = failure.Code, failure.Message
	for _, detail := range failure.Details {
		data, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(detail.Value, "="))
		if err != nil {
			tb.Errorf("detail %s: %v", detail.Type, err)
		}
		info, bad, hint := &errdetails.ErrorInfo{}, &errdetails.BadRequest{}, &errdetails.LocalizedMessage{}
		switch detail.Type {
		case "google.rpc.ErrorInfo":
			err = proto.Unmarshal(data, info)
			a.Reason = info.GetReason()
		case "google.rpc.BadRequest":
			err = proto.Unmarshal(data, bad)
			for _, violation := range bad.GetFieldViolations() {
				a.Fields = append(a.Fields, violation.GetField())
			}
		case "google.rpc.LocalizedMessage":
			err = proto.Unmarshal(data, hint)
			a.Hint = hint.GetMessage()
		}
		if err != nil {
			tb.Errorf("detail %s: %v", detail.Type, err)
		}
	}
}

// call is curl of a call that must succeed; into, when not nil, takes the
// answer.
func (n *Node) call(tb testing.TB, method, body string, into any, args ...string) {
	tb.Helper()
	answer := n.curl(tb, method, body, args...)
	if answer.Status != 200 {
		tb.Fatalf("%s answers %d: %s", method, answer.Status, answer.Body)
	}
	if into != nil {
		if err := json.Unmarshal([]byte(answer.Body), into); err != nil {
			tb.Fatalf("%s: %v\n%s", method, err, answer.Body)
		}
	}
}

func (n *Node) token(tb testing.TB) string {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join(n.Dir, "state", "token"))
	if err != nil {
		tb.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

type created struct {
	Environment Environment `json:"environment"`
	Operation   struct {
		ID    string `json:"id"`
		State string `json:"state"`
	} `json:"operation"`
}

type listed struct {
	Environments []Environment `json:"environments"`
	Next         string        `json:"nextPageToken"`
}

// The API is plain HTTP with JSON, at the unix socket and, with the token, at
// TCP (proof 2).
func TestWireJSON(t *testing.T) {
	n := Start(t, usual, "")
	bearer := []string{"-H", "Authorization: Bearer " + n.token(t)}
	if answer := n.curl(t, "NodeService/GetNodeInfo", "{}", "--http1.1"); answer.Status != 401 || answer.Code != "unauthenticated" ||
		answer.Reason != "UNAUTHENTICATED" || answer.Hint == "" {
		t.Errorf("without a token: %+v", answer)
	}
	if answer := n.curl(t, "NodeService/GetNodeInfo", "{}", "-H", "Authorization: Bearer wrong"); answer.Status != 401 || answer.Reason != "UNAUTHENTICATED" {
		t.Errorf("with a wrong token: %+v", answer)
	}
	for at, args := range map[string][]string{"unix": nil, "tcp": bearer} {
		var web created
		body := `{"name":"web-` + at + `","labels":{"team":"vision","at":"` + at + `"},"wait":"60s","request_id":"first-` + at + `",` +
			`"spec":{"image":"` + n.Image + `","command":["banner",":8080","hello"],"ports":[{"service_type":"SERVICE_TYPE_CUSTOM","internal_port":8080}]}}`
		n.call(t, "EnvironmentService/CreateEnvironment", body, &web, args...)
		if web.Environment.State != "ENVIRONMENT_STATE_RUNNING" || web.Operation.State != "OPERATION_STATE_SUCCEEDED" || len(web.Environment.Ports) != 1 {
			t.Errorf("%s: created %+v", at, web)
		}
		// The same request again is the same environment; another with its id
		// is refused.
		var again created
		n.call(t, "EnvironmentService/CreateEnvironment", body, &again, args...)
		if again.Environment.ID != web.Environment.ID || again.Operation.ID != web.Operation.ID {
			t.Errorf("%s: repeated: %+v, first %+v", at, again, web)
		}
		if answer := n.curl(t, "EnvironmentService/CreateEnvironment", strings.Replace(body, "vision", "sound", 1), args...); answer.Reason != "REQUEST_ID_REUSED" {
			t.Errorf("%s: another request with the same id: %+v", at, answer)
		}
		n.call(t, "EnvironmentService/CreateEnvironment", `{"name":"other-`+at+`","labels":{"team":"sound"},"wait":"60s","spec":{"image":"`+n.Image+`"}}`, nil, args...)

		var one listed
		n.call(t, "EnvironmentService/ListEnvironments", `{"label_selector":"team=vision,at=`+at+`"}`, &one, args...)
		if len(one.Environments) != 1 || one.Environments[0].ID != web.Environment.ID {
			t.Errorf("%s: selected %+v", at, one)
		}
		seen, token := []string{}, ""
		for range 5 {
			var page listed
			n.call(t, "EnvironmentService/ListEnvironments", `{"page_size":1,"page_token":"`+token+`"}`, &page, args...)
			for _, env := range page.Environments {
				seen = append(seen, env.Name)
			}
			if token = page.Next; token == "" {
				break
			}
		}
		if strings.Join(seen, " ") != "web-"+at+" other-"+at {
			t.Errorf("%s: pages of one: %q", at, seen)
		}
		var got struct{ Environment Environment }
		n.call(t, "EnvironmentService/GetEnvironment", `{"environment":"web-`+at+`"}`, &got, args...)
		if got.Environment.ID != web.Environment.ID {
			t.Errorf("%s: got %+v", at, got)
		}
		var ran struct {
			ExitCode       int `json:"exitCode"`
			Stdout, Stderr []byte
		}
		n.call(t, "EnvironmentService/RunCommand", `{"environment":"web-`+at+`","argv":["cat"],"stdin":"`+base64.StdEncoding.EncodeToString([]byte("over the wire"))+`"}`, &ran, args...)
		if string(ran.Stdout) != "over the wire" || ran.ExitCode != 0 {
			t.Errorf("%s: ran %+v", at, ran)
		}
		n.call(t, "EnvironmentService/RunCommand", `{"environment":"web-`+at+`","argv":["testprog","exit","7"]}`, &ran, args...)
		if ran.ExitCode != 7 {
			t.Errorf("%s: exit code %d", at, ran.ExitCode)
		}
		wireUnfinished(t, n, "web-"+at, args)
		for _, name := range []string{"web-" + at, "other-" + at} {
			n.call(t, "EnvironmentService/DeleteEnvironment", `{"environment":"`+name+`","force":true,"timeout":"0s","wait":"60s"}`, nil, args...)
		}
		n.NothingLeft(t)
	}
	t.Run("gRPC", func(t *testing.T) { wireGRPC(t, n) })
}

// wireUnfinished reads what a command wrote before its timeout as the reference
// of the API says.
func wireUnfinished(t *testing.T, n *Node, name string, args []string) {
	t.Helper()
	answer := n.curl(t, "EnvironmentService/RunCommand",
		`{"environment":"`+name+`","argv":["testprog","echo","important",";","stderr","why",";","sleep"],"timeout":"1s"}`, args...)
	var failure struct {
		Details []struct {
			Type, Value string
			Debug       struct {
				ExitCode       int `json:"exitCode"`
				Stdout, Stderr []byte
			}
		}
	}
	if err := json.Unmarshal([]byte(answer.Body), &failure); err != nil || answer.Reason != "COMMAND_TIMEOUT" {
		t.Errorf("a command over its time: %v, %s", err, answer.Body)
	}
	for _, detail := range failure.Details {
		if detail.Type == "remotegpu.v1.RunCommandResponse" {
			if string(detail.Debug.Stdout) != "important\n" || string(detail.Debug.Stderr) != "why\n" || detail.Debug.ExitCode != 137 || detail.Value == "" {
				t.Errorf("what a command wrote before its timeout: %+v", detail)
			}
			return
		}
	}
	t.Errorf("what a command wrote before its timeout is no detail: %s", answer.Body)
}

// grpc runs grpcurl or buf in the node's network namespace.
func (n *Node) grpc(tb testing.TB, tool string, args ...string) string {
	tb.Helper()
	cmd := n.command(tb, testutil.Tool(tool), args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %s: %v\n%s", tool, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func wireGRPC(t *testing.T, n *Node) {
	t.Helper()
	header := "Authorization: Bearer " + n.token(t)
	grpcurl := func(args ...string) string {
		t.Helper()
		return n.grpc(t, "grpcurl", append([]string{"-plaintext", "-max-time", "60", "-H", header}, args...)...)
	}
	const address = "127.0.0.1:7480"
	services := grpcurl(address, "list")
	for _, service := range []string{
		"remotegpu.v1.EnvironmentService", "remotegpu.v1.OperationService", "remotegpu.v1.ImageService",
		"remotegpu.v1.PortService", "remotegpu.v1.DesktopService", "remotegpu.v1.NodeService", "grpc.health.v1.Health",
	} {
		if !strings.Contains(services, service) {
			t.Errorf("reflection does not list %s:\n%s", service, services)
		}
	}
	if out := grpcurl(address, "describe", "remotegpu.v1.CreateEnvironmentRequest"); !strings.Contains(out, "EnvironmentSpec spec = 5") {
		t.Errorf("reflection describes: %s", out)
	}
	if out := grpcurl(address, "grpc.health.v1.Health/Check"); !strings.Contains(out, `"SERVING"`) {
		t.Errorf("health: %s", out)
	}
	// The change of one environment is seen by a watcher, and the work on it
	// by a watcher of the operation.
	watch := n.command(t, testutil.Tool("grpcurl"), "-plaintext", "-max-time", "60", "-H", header, "-d", "{}", address,
		"remotegpu.v1.EnvironmentService/WatchEnvironments")
	var stream syncBuffer
	watch.Stdout, watch.Stderr = &stream, &stream
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = watch.Process.Kill(); _ = watch.Wait() })
	Eventually(t, "the watch to be in step", func() bool { return strings.Contains(stream.String(), `"synced": true`) })

	var web created
	out := grpcurl("-d", `{"name":"web","spec":{"image":"`+n.Image+`"}}`, address, "remotegpu.v1.EnvironmentService/CreateEnvironment")
	if err := json.Unmarshal([]byte(out), &web); err != nil || web.Operation.ID == "" {
		t.Fatalf("created: %v\n%s", err, out)
	}
	if out := grpcurl("-d", `{"id":"`+web.Operation.ID+`"}`, address, "remotegpu.v1.OperationService/WatchOperation"); !strings.Contains(out, "OPERATION_STATE_SUCCEEDED") {
		t.Errorf("watched operation: %s", out)
	}
	for _, state := range []string{"ENVIRONMENT_STATE_CREATING", "ENVIRONMENT_STATE_RUNNING"} {
		Eventually(t, "the watch to show "+state, func() bool { return strings.Contains(stream.String(), state) })
	}
	if out := grpcurl("-d", `{}`, address, "remotegpu.v1.EnvironmentService/ListEnvironments"); !strings.Contains(out, web.Environment.ID) {
		t.Errorf("listed: %s", out)
	}
	grpcurl("-d", `{"environment":"web","force":true,"timeout":"0s","wait":"60s"}`, address, "remotegpu.v1.EnvironmentService/DeleteEnvironment")
	Eventually(t, "the watch to show the delete", func() bool { return strings.Contains(stream.String(), "ENVIRONMENT_STATE_DELETED") })

	buf := func(method, body string) string {
		t.Helper()
		return n.grpc(t, "buf", "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-H", header, "--reflect-header", header,
			"-d", body, "http://"+address+"/remotegpu.v1.EnvironmentService/"+method)
	}
	buf("CreateEnvironment", `{"name":"buf","wait":"60s","spec":{"image":"`+n.Image+`"}}`)
	if out := buf("ListEnvironments", `{}`); !strings.Contains(out, `"buf"`) || !strings.Contains(out, "ENVIRONMENT_STATE_RUNNING") {
		t.Errorf("buf lists: %s", out)
	}
	buf("DeleteEnvironment", `{"environment":"buf","force":true,"timeout":"0s","wait":"60s"}`)
	n.NothingLeft(t)
}
