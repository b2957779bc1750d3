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
		"one":  {[]float64{3}, report.Summary{Median: 3, Min: 3, Max: 3, P99: 3, N: 1}},
		"odd":  {[]float64{9, 1, 2}, report.Summary{Median: 2, Min: 1, Max: 9, P99: 9, N: 3}},
		"even": {[]float64{9, 1, 2, 4}, report.Summary{Median: 3, Min: 1, Max: 9, P99: 9, N: 4}},
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

func TestSummarizeP99(t *testing.T) {
	var samples []float64
	for i := range 200 {
		samples = append(samples, float64(200-i))
	}
	if got := report.Summarize(samples).P99; got != 198 {
		t.Errorf("p99 of 1 to 200 is %v, want 198", got)
	}
}

var names = report.Names{Of: "ours", Bound: "bound", Docker: "docker"}

// column makes a column whose rows all have the median.
func column(suite *report.Suite, name string, median float64) *report.Column {
	made := report.NewColumn(name)
	for _, row := range suite.Rows {
		made.AddValue(row, median)
	}
	suite.Columns = append(suite.Columns, made)
	return made
}

// judged runs Judge over suites and returns the verdicts by target.
func judged(suites ...*report.Suite) map[string]report.Verdict {
	result := report.Result{Suites: suites}
	result.Judge(names, "bound", "docker")
	got := map[string]report.Verdict{}
	for _, suite := range suites {
		for _, target := range suite.Targets {
			key := target.Of.String()
			if target.To != nil {
				key += " to " + target.To.String()
			}
			got[key] = target.Verdict
		}
	}
	return got
}

func TestJudgeRatios(t *testing.T) {
	suite := report.NewSuite(report.Life, "")
	column(suite, "ours", 50)
	column(suite, "bound", 40)
	docker := column(suite, "docker", 100)
	missing := report.NewColumn("podman")
	missing.Missing = "podman is not installed"
	suite.Columns = append(suite.Columns, missing)
	want := map[string]report.Verdict{
		"ours create→port to bound create→port":        report.Missed, // 1.25 of at most 1.00
		"ours create→running to bound create→running":  report.OK,     // 1.25 of at most 1.25
		"ours exec true to bound exec true":            report.Missed, // 1.25 of at most 1.15
		"ours stop+delete to bound stop+delete":        report.OK,
		"ours create→port to docker create→port":       report.OK, // 0.50 of at most 0.55
		"ours create→running to docker create→running": report.OK,
		"ours stop+delete to docker stop+delete":       report.Missed, // 0.50 of at most 0.40
	}
	if diff := cmp.Diff(want, judged(suite)); diff != "" {
		t.Error(diff)
	}
	if got := docker.Ratios["bound"][report.Exec]; got != 2.5 {
		t.Errorf("ratio of docker to bound is %v, want 2.5", got)
	}
	if got := missing.Ratios["bound"]; len(got) != 0 {
		t.Errorf("a column that is missing has ratios %v", got)
	}
}

// Other kinds of targets: between rows of one column, of another stat than the
// median, and without a ratio.
func TestJudgeOtherTargets(t *testing.T) {
	list := report.NewSuite(report.List, "")
	column(list, "ours", 2)
	column(list, "docker", 10)
	events := report.NewSuite(report.Events, "")
	ours := column(events, "ours", 1)
	column(events, "docker", 5)
	ours.AddValue(report.Death, 9) // the median is 5, as docker's; the p99 is not
	logs := report.NewSuite(report.Logs, "")
	column(logs, "ours", 49.5)
	want := map[string]report.Verdict{
		"ours 50 of 500 to ours 50 of 50":          report.OK,
		"ours all of 200 to docker all of 200":     report.OK,
		"ours end→told p99 to docker end→told p99": report.Missed,
		"ours one, MB/s":                           report.Missed, // at least 50
		"ours at 50, MB/s":                         report.OK,     // at least 49
	}
	if diff := cmp.Diff(want, judged(list, events, logs)); diff != "" {
		t.Error(diff)
	}
}

func TestJudgeWithoutTheOtherColumn(t *testing.T) {
	var all []*report.Suite
	for _, name := range report.Suites() {
		suite := report.NewSuite(name, "")
		if len(suite.Rows) == 0 {
			t.Errorf("suite %s has no rows", name)
		}
		column(suite, "bound", 50)
		all = append(all, suite)
	}
	for what, verdict := range judged(all...) {
		if verdict != report.Unjudged {
			t.Errorf("%s is %s, though ours was not measured", what, verdict)
		}
	}
}

func TestWriteSaysWhatIsMissingAndWhatFailed(t *testing.T) {
	suite := report.NewSuite(report.Life, "some lives")
	ours, failed := column(suite, "ours", 50), column(suite, "docker", 100)
	failed.Failure = "create: refused"
	missing := report.NewColumn("podman")
	missing.Missing = "podman is not installed"
	suite.Columns = append(suite.Columns, missing)
	ours.AddSpans("a create", map[string]time.Duration{"snapshot": 3 * time.Millisecond, "task": 40 * time.Millisecond})
	result := report.Result{Suites: []*report.Suite{suite}}
	result.Judge(names, "docker")
	var out strings.Builder
	if err := result.Write(&out, "docker"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"LIFE: some lives",
		"podman: NOT MEASURED: podman is not installed",
		"docker: FAILED: create: refused",
		"50.0",
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
