package e2e_test

import (
	"encoding/json"
	"strings"
	"testing"
)

// Where nothing can enforce a limit of the writable layer, the node says so
// before anybody relies on it.
func TestDiskLimitRefused(t *testing.T) {
	n := Start(t, usual, "")
	var info struct {
		DiskQuota struct {
			Supported bool   `json:"supported"`
			Reason    string `json:"reason"`
			Hint      string `json:"hint"`
		} `json:"diskQuota"`
	}
	if err := json.Unmarshal([]byte(n.Must(t, "node", "info", "-o", "json")), &info); err != nil {
		t.Fatal(err)
	}
	quota := info.DiskQuota
	if quota.Supported || quota.Reason == "" || quota.Hint == "" {
		t.Fatalf("the directory for temporary files has project quotas: set TMPDIR to one that has none: %+v", quota)
	}
	_, stderr, code := n.CLI(t, "env", "create", "one", "--image", n.Image, "--disk", "64M")
	if code != 4 || !strings.Contains(stderr, quota.Reason) || !strings.Contains(stderr, quota.Hint) || !strings.Contains(stderr, "spec.resources.disk_bytes") {
		t.Errorf("create: code %d, %s", code, stderr)
	}
	if all := n.List(t); len(all) > 0 {
		t.Errorf("it was made all the same: %+v", all)
	}
	n.Must(t, "env", "create", "one", "--image", n.Image, "--disk", "64M", "--disk-best-effort")
	var env struct {
		Warnings  []string `json:"warnings"`
		DiskLimit struct {
			Enforced bool   `json:"enforced"`
			Bytes    string `json:"bytes"`
			Reason   string `json:"reason"`
		} `json:"diskLimit"`
		Spec struct {
			Resources struct {
				DiskBytes string `json:"diskBytes"`
			} `json:"resources"`
		} `json:"spec"`
	}
	if err := json.Unmarshal([]byte(n.Must(t, "env", "get", "one", "-o", "json")), &env); err != nil {
		t.Fatal(err)
	}
	if env.DiskLimit.Enforced || env.DiskLimit.Bytes != "0" || env.DiskLimit.Reason != quota.Reason || env.Spec.Resources.DiskBytes != "67108864" || len(env.Warnings) != 1 {
		t.Errorf("got %+v", env)
	}
	if found := n.reconcile(t, "--dry-run"); len(found) > 0 {
		t.Errorf("found %+v", found)
	}
}
