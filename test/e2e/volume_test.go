package e2e_test

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestVolumes(t *testing.T) {
	n := Start(t, usual, "")
	get := func(name string) (v struct {
		Name   string   `json:"name"`
		Node   string   `json:"node"`
		Size   int64    `json:"sizeBytes,string"`
		UsedBy []string `json:"usedBy"`
	},
	) {
		t.Helper()
		if err := json.Unmarshal([]byte(n.Must(t, "volume", "get", name, "-o", "json")), &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	fails := func(code int, text string, args ...string) {
		t.Helper()
		if _, errs, got := n.CLI(t, args...); got != code || !strings.Contains(errs, text) {
			t.Errorf("%s: exit %d, want %d and %s\n%s", strings.Join(args, " "), got, code, text, errs)
		}
	}
	n.Must(t, "volume", "create", "data")
	fails(4, "exists", "volume", "create", "data")
	fails(2, "is not a DNS label", "volume", "create", "Not-A-Name")
	fails(3, "there is no volume", "volume", "get", "nothing")
	fails(3, "there is no volume", "volume", "rm", "nothing")
	if v := get("data"); v.Node != "node1" || len(v.UsedBy) != 0 {
		t.Errorf("unused: %+v", v)
	}
	n.Must(t, "env", "create", "web", "--image", n.Image, "-v", "data:/data", "-v", "made:/made")
	n.Must(t, "env", "exec", "--stdin=false", "web", "--", "testprog", "write", "/data/file", strings.Repeat("x", 30000))
	if v := get("data"); v.Size < 30000 || len(v.UsedBy) != 1 || v.UsedBy[0] != n.Get(t, "web").ID {
		t.Errorf("used: %+v", v)
	}
	fails(4, "is mounted by web", "volume", "rm", "data")
	n.Must(t, "env", "stop", "web")
	fails(4, "is mounted by web", "volume", "rm", "data")
	if out := n.Must(t, "volume", "ls", "--sizes"); !strings.Contains(out, "data") || !strings.Contains(out, "made") || !strings.Contains(out, "KiB") {
		t.Errorf("ls: %s", out)
	}
	if out := n.Must(t, "volume", "ls", "--page-size", "1", "-o", "json"); !strings.Contains(out, `"nextPageToken": "data"`) {
		t.Errorf("the first page: %s", out)
	}
	n.Must(t, "env", "rm", "web")
	if out := n.Must(t, "volume", "rm", "data", "made", "-o", "json"); out != "{\"name\":\"data\"}\n{\"name\":\"made\"}\n" {
		t.Errorf("rm: %s", out)
	}
	if out := n.Must(t, "volume", "ls"); strings.Contains(out, "data") || strings.Contains(out, "made") {
		t.Errorf("after rm: %s", out)
	}
	// The name gives a new, empty volume.
	n.Must(t, "env", "create", "next", "--image", n.Image, "-v", "data:/data")
	if out := n.Must(t, "env", "exec", "--stdin=false", "next", "--", "testprog", "ls", "/data"); strings.TrimSpace(out) != "" {
		t.Errorf("the new volume has %q", out)
	}
	n.Must(t, "env", "rm", "--force", "next")
	n.Must(t, "volume", "rm", "data")
}
