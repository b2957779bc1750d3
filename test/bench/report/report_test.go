package report_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/test/bench/report"
)

func TestSummarize(t *testing.T) {
	for name, test := range map[string]struct {
		samples []float64
		want    report.Summary
	}{
		"none": {nil, report.Summary{}},
		"one":  {[]float64{3}, report.Summary{Median: 3, Min: 3, Max: 3, N: 1}},
		"odd":  {[]float64{9, 1, 2}, report.Summary{Median: 2, Min: 1, Max: 9, N: 3}},
		"even": {[]float64{9, 1, 2, 4}, report.Summary{Median: 3, Min: 1, Max: 9, N: 4}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, report.Summarize(test.samples)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSummarizeLeavesSamplesInOrder(t *testing.T) {
	samples := []float64{3, 1, 2}
	report.Summarize(samples)
	if diff := cmp.Diff([]float64{3, 1, 2}, samples); diff != "" {
		t.Error(diff)
	}
}

// column makes a column whose rows all have the median ms.
func column(name string, ms int) *report.Column {
	made := report.NewColumn(name)
	for _, row := range report.Rows() {
		made.Add(row, time.Duration(ms)*time.Millisecond)
	}
	return made
}

func TestJudge(t *testing.T) {
	missing := report.NewColumn("podman")
	missing.Missing = "podman is not installed"
	result := report.Result{Columns: []*report.Column{column("ours", 50), column("bound", 40), column("docker", 100), missing}}
	result.Judge("ours", "bound", "docker", "bound", "docker")

	got := map[string]report.Verdict{}
	for _, target := range result.Targets {
		got[string(target.Row)+" to "+target.To] = target.Verdict
	}
	want := map[string]report.Verdict{
		"create→port to bound":     report.OK, // 1.25 of at most 1.25
		"create→running to bound":  report.OK,
		"stop+delete to bound":     report.OK,
		"create→port to docker":    report.OK, // 0.50 of at most 0.55
		"create→running to docker": report.OK,
		"stop+delete to docker":    report.Missed, // 0.50 of at most 0.40
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got := result.Columns[2].Ratios["bound"][report.Exec]; got != 2.5 {
		t.Errorf("ratio of docker to bound is %v, want 2.5", got)
	}
	if got := result.Columns[3].Ratios["bound"]; len(got) != 0 {
		t.Errorf("a column that is missing has ratios %v", got)
	}
}

func TestJudgeWithoutTheOtherColumn(t *testing.T) {
	result := report.Result{Columns: []*report.Column{column("ours", 50)}}
	result.Judge("ours", "bound", "docker", "bound", "docker")
	for _, target := range result.Targets {
		if target.Verdict != report.Unjudged || target.Ratio != 0 {
			t.Errorf("%s to %s is %s, ratio %v, though %s was not measured",
				target.Row, target.To, target.Verdict, target.Ratio, target.To)
		}
	}
}

func TestWriteSaysWhatIsMissingAndWhatFailed(t *testing.T) {
	missing, failed := report.NewColumn("podman"), column("docker", 100)
	missing.Missing = "podman is not installed"
	failed.Failure = "create: refused"
	ours := column("ours", 50)
	report.AddSpans(ours.Spans, map[string]time.Duration{"snapshot": 3 * time.Millisecond, "task": 40 * time.Millisecond})
	result := report.Result{Runs: 1, Columns: []*report.Column{ours, missing, failed}}
	result.Judge("ours", "bound", "docker", "docker")
	var out strings.Builder
	if err := result.Write(&out, "docker"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"podman: NOT MEASURED: podman is not installed",
		"docker: FAILED after 1 runs: create: refused",
		"50.0 (50.0–50.0)",
		"parts of a create, ours",
		"not measured",
		"missed",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report does not say %q:\n%s", want, out.String())
		}
	}
	if strings.Index(out.String(), "task ") > strings.Index(out.String(), "snapshot ") {
		t.Errorf("the longest part is not the first:\n%s", out.String())
	}
}
