package cli_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func TestNodeReconcile(t *testing.T) {
	const (
		none   = remotegpuv1.ReconcileAction_RECONCILE_ACTION_NONE
		record = remotegpuv1.ReconcileAction_RECONCILE_ACTION_RECORD
		remove = remotegpuv1.ReconcileAction_RECONCILE_ACTION_REMOVE
		mend   = remotegpuv1.ReconcileAction_RECONCILE_ACTION_MEND
	)
	f := newFake(t)
	if code, stdout, _ := f.run(t, "node", "reconcile"); code != 0 || stdout != "all is as it should be\n" {
		t.Errorf("nothing to do: code %d, %q", code, stdout)
	}
	f.findings = []*remotegpuv1.Finding{
		{Kind: "lease", Name: "3 of them", Message: "somebody else took it", Action: none},
		{Kind: "network", Name: "01A", Environment: "01A", Message: "its environment is gone", Action: remove, Ours: true},
		{Kind: "environment", Name: "01B", Environment: "01B", EnvironmentName: "desk", Message: "its process has ended", Action: record, Ours: true},
		{Kind: "container", Name: "01C", Environment: "01C", EnvironmentName: "old", Message: "it is missing", Action: none, Ours: true},
		{Kind: "rule", Name: "RGPU-FWD", Message: "it is not as it was declared", Action: mend, Ours: true},
	}
	code, stdout, stderr := f.run(t, "node", "reconcile", "--dry-run")
	want := `KIND          NAME        ENVIRONMENT   ACTION           WHAT IS WRONG
lease         3 of them   -             none, not ours   somebody else took it
network       01A         01A           remove           its environment is gone
environment   01B         desk          record           its process has ended
container     01C         old           none             it is missing
rule          RGPU-FWD    -             mend             it is not as it was declared
`
	if diff := cmp.Diff(want, stdout); code != 0 || diff != "" {
		t.Errorf("dry run: code %d, %s %s", code, stderr, diff)
	}
	if request, ok := f.last.(*remotegpuv1.ReconcileRequest); !ok || !request.GetDryRun() {
		t.Errorf("asked for %v", f.last)
	}
	f.findings[1].Problem = &remotegpuv1.Problem{Reason: "NETWORK_FAILED", Message: "it is busy"}
	f.findings[2].Done, f.findings[4].Done = true, true
	code, stdout, stderr = f.run(t, "node", "reconcile")
	want = `KIND          NAME        ENVIRONMENT   ACTION                      WHAT IS WRONG
lease         3 of them   -             none, not ours              somebody else took it
network       01A         01A           remove failed: it is busy   its environment is gone
environment   01B         desk          record, done                its process has ended
container     01C         old           none                        it is missing
rule          RGPU-FWD    -             mend, done                  it is not as it was declared
`
	if diff := cmp.Diff(want, stdout); code != 8 || diff != "" {
		t.Errorf("code %d: %s", code, diff)
	}
	if request, ok := f.last.(*remotegpuv1.ReconcileRequest); !ok || request.GetDryRun() || !strings.HasPrefix(stderr, "Error: 1 of 5 findings") {
		t.Errorf("asked for %v, said %q", f.last, stderr)
	}
	if code, stdout, _ = f.run(t, "node", "reconcile", "-o", "json"); code != 8 || !strings.Contains(stdout, `"environmentName": "desk"`) {
		t.Errorf("as JSON: code %d, %s", code, stdout)
	}
}
