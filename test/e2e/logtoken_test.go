package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// getLogs calls GetLogs as any gRPC client does, and returns the lines, the
// last token and what it said when it failed.
func (n *Node) getLogs(tb testing.TB, request string) (lines []string, token, failure string) {
	tb.Helper()
	cmd := n.command(tb, testutil.Tool("grpcurl"), "-plaintext", "-max-time", "60", "-H", "Authorization: Bearer "+n.token(tb),
		"-d", request, "127.0.0.1:7480", "remotegpu.v1.EnvironmentService/GetLogs")
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, "", errs.String()
	}
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var message struct {
			Lines []struct {
				Data []byte `json:"data"`
			} `json:"lines"`
			Token string `json:"resumeToken"`
		}
		if err := decoder.Decode(&message); errors.Is(err, io.EOF) {
			return lines, token, ""
		} else if err != nil {
			tb.Fatalf("%s: %v\n%s", request, err, out)
		}
		for _, line := range message.Lines {
			lines = append(lines, string(line.Data))
		}
		token = message.Token
	}
}

// Tokens of a log on the wire: what they lead to, and how the others are refused.
func TestLogTokens(t *testing.T) {
	n := Start(t, testutil.Containerd2, "")
	n.Must(t, "env", "create", "box", "--image", n.Image, "--", "echo", "one", ";", "echo", "two", ";", "sleep")
	n.Must(t, "env", "create", "other", "--image", n.Image)
	Eventually(t, "two lines", func() bool { return n.Must(t, "env", "logs", "box") == "one\ntwo\n" })
	lines, end, failure := n.getLogs(t, `{"environment":"box","tail":0}`)
	if len(lines) > 0 || end == "" || failure != "" {
		t.Fatalf("no line: %q, token %q, %s", lines, end, failure)
	}
	after := func(token, more string) string {
		return fmt.Sprintf(`{"environment":"box","resume_after":%q%s}`, token, more)
	}
	if lines, token, failure := n.getLogs(t, after(end, "")); len(lines) > 0 || token != end {
		t.Errorf("behind the end: %q, token %q, want %q; %s", lines, token, end, failure)
	}
	n.Must(t, "env", "restart", "box")
	Eventually(t, "both lines of its second life", func() bool {
		lines, _, failure := n.getLogs(t, after(end, ""))
		if failure != "" {
			t.Fatal(failure)
		}
		return strings.ReplaceAll(strings.Join(lines, " "), "stopped by terminated ", "") == "one two"
	})
	for what, test := range map[string]struct{ request, field string }{
		"nonsense":               {after("nonsense", ""), "resume_after"},
		"with a tail":            {after(end, `,"tail":1`), "tail"},
		"of another environment": {fmt.Sprintf(`{"environment":"other","resume_after":%q}`, end), "resume_after"},
		"too long":               {after(strings.Repeat("x", 257), ""), "resume_after"},
	} {
		_, _, failure := n.getLogs(t, test.request)
		if !strings.Contains(failure, "InvalidArgument") || !strings.Contains(failure, "FIELD_INVALID") || !strings.Contains(failure, `"field": "`+test.field+`"`) ||
			!strings.Contains(failure, "LocalizedMessage") {
			t.Errorf("%s: %s", what, failure)
		}
	}
}
