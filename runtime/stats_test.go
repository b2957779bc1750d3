package runtime_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

// All that run are those of all projects unless one is named, as in lists. Names
// are of the default project then, as everywhere.
func TestStatsOfProjects(t *testing.T) {
	d := start(t, newHost(t))
	for name, project := range map[string]string{"mine": "", "theirs": "other"} {
		req := full(name)
		req.Project, req.Spec.Mounts = project, nil
		d.create(req)
	}
	for _, test := range []struct {
		project string
		names   []string
		want    []string // project and name
	}{
		{"", nil, []string{"default/mine", "other/theirs"}},
		{"default", nil, []string{"default/mine"}},
		{"other", nil, []string{"other/theirs"}},
		{"", []string{"mine"}, []string{"default/mine"}},
	} {
		req := runtime.StatsRequest{Project: test.project, Environments: test.names}
		once, err := d.Stats(t.Context(), req)
		if got := called(once); err != nil || !slices.Equal(got, test.want) {
			t.Errorf("project %q, %q: %q, %v", test.project, test.names, got, err)
		}
		seen := errors.New("seen")
		err = d.WatchStats(t.Context(), req, func(stats []runtime.Stats) error {
			if got := called(stats); !slices.Equal(got, test.want) {
				t.Errorf("project %q, %q: watched %q", test.project, test.names, got)
			}
			return seen
		})
		if !errors.Is(err, seen) {
			t.Error(err)
		}
	}
	if _, err := d.Stats(t.Context(), runtime.StatsRequest{Environments: []string{"theirs"}}); problem.Of(err).Reason != problem.EnvNotFound {
		t.Errorf("the name of another project's: %v", err)
	}
}

func called(all []runtime.Stats) []string {
	var names []string
	for i := range all {
		names = append(names, all[i].Project+"/"+all[i].Name)
	}
	slices.Sort(names)
	return names
}
