package cli_test

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// The tab key offers for each argument what can stand there, and nothing behind
// the last.
func TestCompletionOfArguments(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"data.tar", ".hidden", "bad\tname"} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir("demos", 0o700); err != nil {
		t.Fatal(err)
	}
	f := newFake(t)
	gone := aSnapshot()
	gone.Name, gone.EnvironmentDeleted = "gone", true
	same := aSnapshot()
	same.Name = "demo"
	f.snapshots.list = []*remotegpuv1.Snapshot{aSnapshot(), same, gone}
	for args, want := range map[string]string{
		"port get |":                        "22000 :4",
		"port update |":                     "22000 :4",
		"port rm |":                         "22000 :4",
		"port rm 22000 |":                   ":4",
		"gpu mig delete |":                  "MIG-1 GPU-2:2 :4",
		"gpu mig delete MIG-1 |":            "GPU-2:2 :4",
		"gpu mig mode |":                    "GPU-1 GPU-2 :4",
		"gpu mig mode GPU-2 |":              "on off :4",
		"gpu mig mode GPU-2 on |":           ":4",
		"env snapshot rollback |":           "demo :4",
		"env snapshot rollback demo |":      "first demo :4",
		"env snapshot rollback demo f|":     "first :4",
		"env snapshot rollback demo first|": "first :4",
		"env clone |":                       "demo demo/first demo/demo demo/gone :4",
		"env clone demo/|":                  "demo/first demo/demo demo/gone :4",
		"env clone demo |":                  ":4",
		// On either side of a copy there may be a name, or a file here. 2: without a
		// space; 0: files, as the shell offers them.
		"env cp |":                     "demo: data.tar demos/ :6",
		"env cp de|":                   "demo: demos/ :6",
		"env cp demos|":                ":0",
		"env cp ./d|":                  ":0",
		"env cp demo:/etc/|":           ":4",
		"env cp demo:/etc/hosts |":     ":0",
		"env cp data.tar |":            "demo: :6",
		"env cp data.tar x|":           ":6",
		"env cp data.tar demo:/x |":    ":4",
		"volume cp |":                  "data: data.tar demos/ :6",
		"volume cp x da|":              "data: :6",
		"--addr unix:/// env cp |":     ":0",
		"--addr unix:/// env cp x d|":  ":0",
		"--addr unix:/// env clone d|": ":1",
	} {
		fields := strings.Fields(strings.TrimSuffix(args, "|"))
		if strings.HasSuffix(args, " |") {
			fields = append(fields, "")
		}
		code, stdout, stderr := f.run(t, append([]string{"__complete"}, fields...)...)
		var got []string
		for line := range strings.Lines(stdout) {
			name, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
			got = append(got, name)
		}
		if diff := cmp.Diff(strings.Fields(want), got); code != 0 || diff != "" {
			t.Errorf("%s: code %d, %s\n%s", args, code, diff, stderr)
		}
	}
	f.run(t, "__complete", "env", "snapshot", "rollback", "demo", "")
	if request, is := f.last.(*remotegpuv1.ListSnapshotsRequest); !is || request.GetEnvironment() != "demo" || request.GetProject() != "default" {
		t.Errorf("asked for %v", f.last)
	}
}
