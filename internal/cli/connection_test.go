package cli_test

import (
	"context"
	"encoding/pem"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/cli"
)

func TestConnection(t *testing.T) {
	f := newFake(t)
	if _, _, _ = f.runWith(t.Context(), "", map[string]string{"REMOTEGPU_TOKEN": "secret"}, "env", "ls"); f.auth != "Bearer secret" {
		t.Errorf("authorization %q", f.auth)
	}
	code, _, stderr := f.run(t, "--addr", "unix:///nonexistent/node.sock", "env", "ls")
	if code != 6 || !strings.Contains(stderr, "cannot reach unix:///nonexistent/node.sock") || !strings.Contains(stderr, "Try: start the node") {
		t.Errorf("code %d: %s", code, stderr)
	}
	code, _, stderr = f.run(t, "--addr", "http://127.0.0.1:1", "env", "ls")
	if code != 6 || !strings.Contains(stderr, "Try: check the address") {
		t.Errorf("code %d: %s", code, stderr)
	}
	code, _, stderr = f.runWith(t.Context(), "", map[string]string{"REMOTEGPU_TOKEN": "secret"}, "--addr", "http://192.0.2.1:7480", "env", "ls")
	if code != 2 || !strings.Contains(stderr, "clear text") {
		t.Errorf("code %d: %s", code, stderr)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if code, _, stderr := f.runWith(ctx, "", map[string]string{}, "env", "ls"); code != 130 || stderr != "Error: interrupted\n" {
		t.Errorf("code %d: %s", code, stderr)
	}
	if code, stdout, _ := f.run(t, "version"); code != 0 || !strings.Contains(stdout, "v0.1.0") {
		t.Errorf("code %d: %s", code, stdout)
	}
	if code, stdout, _ := f.run(t, "--addr", "unix:///nonexistent/x", "version"); code != 0 || !strings.Contains(stdout, "unreachable") {
		t.Errorf("code %d: %s", code, stdout)
	}
}

func TestCompletion(t *testing.T) {
	f := newFake(t)
	for _, test := range []struct{ args, want string }{
		{"__complete env get d", "demo\trunning docker.io/remotegpu/desktop-base:latest\n:4\n"},
		{"__complete env rm demo x", ":4\n"},
		{"__complete image rm rem", "remotegpu/desktop-base\n:4\n"},
		{"__complete env create x --pull a", "missing\nalways\nnever\n:4\n"},
		{"__complete --addr unix:///nonexistent env get d", ":1\n"},
	} {
		code, stdout, _ := f.run(t, strings.Fields(test.args)...)
		if code != 0 || !strings.HasPrefix(stdout, test.want) {
			t.Errorf("%s: code %d, %q", test.args, code, stdout)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if code, stdout, _ := f.run(t, "completion", shell); code != 0 || !strings.Contains(stdout, "remotegpu") {
			t.Errorf("%s: code %d", shell, code)
		}
	}
}

// TestHTTPS needs the certificate authority and says so.
func TestHTTPS(t *testing.T) {
	f := newFake(t)
	server := httptest.NewUnstartedServer(f.handler)
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	code, _, stderr := f.run(t, "--addr", server.URL, "env", "ls")
	if code != 6 || !strings.Contains(stderr, "--cacert") {
		t.Errorf("code %d: %s", code, stderr)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(file, block, 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"REMOTEGPU_ADDR": server.URL, "REMOTEGPU_CACERT": file, "REMOTEGPU_TOKEN": "secret"}
	if code, stdout, stderr := f.runWith(t.Context(), "", env, "env", "ls"); code != 0 || !strings.Contains(stdout, "demo") || f.auth != "Bearer secret" {
		t.Errorf("code %d: %s%s", code, stdout, stderr)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1024": 1024, "8G": 8 << 30, "8GiB": 8 << 30, "8gb": 8 << 30, "1.5m": 3 << 19, "512 MiB": 512 << 20,
		"": -1, "G": -1, "-1": -1, "1X": -1, "0x10": -1, "1e400": -1, "9999999T": -1, "NaN": -1, "Inf": -1,
	} {
		if got, err := cli.ParseSize(text); got != want && (want >= 0 || err == nil) || want >= 0 && err != nil {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

func TestNewLines(t *testing.T) {
	for _, test := range []struct{ before, now, want string }{
		{"", "a b", "a b"}, {"a b", "a b", ""}, {"a b", "a b c", "c"}, {"a b c", "b c d", "d"}, {"a b", "x y", "x y"}, {"a b", "", ""},
	} {
		got := cli.NewLines(strings.Fields(test.before), strings.Fields(test.now))
		if strings.Join(got, " ") != test.want {
			t.Errorf("%+v: %q", test, got)
		}
	}
}

// TestBar plays a terminal: what is left on the screen must be the log alone.
func TestBar(t *testing.T) {
	var out strings.Builder
	long := operation(running, strings.Repeat("x", 200), 0, 0)
	logged := operation(running, "step", 1, 2)
	logged.Progress.Log = []string{"hello\x1b[2J"}
	cli.ShowOnTerminal(&out, long, logged, operation(running, "pulling", 1<<20, 4<<20))
	if strings.Contains(out.String(), "\x1b") {
		t.Error("a control character reached the terminal")
	}
	if !strings.Contains(out.String(), "[======                  ] 25% of 4 MiB pulling") || !strings.Contains(out.String(), "1/2 step") {
		t.Errorf("%q", out.String())
	}
	var screen []string
	for line := range strings.SplitSeq(out.String(), "\n") {
		row := []rune{}
		column := 0
		for _, r := range line {
			if r == '\r' {
				column = 0
				continue
			}
			if column == len(row) {
				row = append(row, ' ')
			}
			row[column] = r
			column++
		}
		if len(row) > 80 {
			t.Errorf("a line of %d columns", len(row))
		}
		screen = append(screen, strings.TrimRight(string(row), " "))
	}
	if got := strings.Join(screen, "|"); got != "hello [2J|" {
		t.Errorf("screen %q", got)
	}
}
