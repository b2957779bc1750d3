package cli_test

import (
	"context"
	"strings"
	"testing"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (f *fake) GetStats(_ context.Context, r *remotegpuv1.GetStatsRequest) (*remotegpuv1.GetStatsResponse, error) {
	response := &remotegpuv1.GetStatsResponse{Stats: []*remotegpuv1.Stats{{Environment: "01ENV", Name: "demo", Project: "default"}}}
	if r.GetProject() == "" {
		response.Stats = append(response.Stats, &remotegpuv1.Stats{Environment: "01TWO", Name: "demo", Project: "other"})
	}
	return response, f.got(r)
}

// The project is said where names alone do not say which environment it is.
func TestStatsOfAllProjects(t *testing.T) {
	f := newFake(t)
	for args, want := range map[string]string{
		"env stats":                    "NAME PROJECT CPU demo default 0.0% demo other 0.0%",
		"env top --no-stream":          "NAME PROJECT CPU demo default 0.0% demo other 0.0%",
		"--project default env stats ": "NAME CPU MEMORY demo 0.0% 0",
	} {
		code, stdout, stderr := f.run(t, strings.Fields(args)...)
		var first []string
		for line := range strings.Lines(stdout) {
			first = append(first, strings.Fields(line)[:3]...)
		}
		if got := strings.Join(first, " "); code != 0 || got != want {
			t.Errorf("%s: code %d, %q, want %q: %s", args, code, got, want, stderr)
		}
	}
}
