package report

// Target is a ratio of medians that is to be reached. Nothing fails when it
// is missed; it is printed.
type Target struct {
	Row     Row     `json:"row"`
	Of      string  `json:"of"`
	To      string  `json:"to"`
	AtMost  float64 `json:"at_most"`
	Ratio   float64 `json:"ratio,omitempty"`
	Verdict Verdict `json:"verdict"`
}

// Verdict says how a target was met.
type Verdict string

// The verdicts.
const (
	OK       Verdict = "ok"
	Missed   Verdict = "missed"
	Unjudged Verdict = "not measured"
)

// targets are the project's: of a create and of a stop with delete, against
// the lower bound and against docker.
func targets(of, bound, docker string) []Target {
	return []Target{
		{Row: CreatePort, Of: of, To: bound, AtMost: 1.25},
		{Row: CreateRunning, Of: of, To: bound, AtMost: 1.25},
		{Row: StopDelete, Of: of, To: bound, AtMost: 1.25},
		{Row: CreatePort, Of: of, To: docker, AtMost: 0.55},
		{Row: CreateRunning, Of: of, To: docker, AtMost: 0.55},
		{Row: StopDelete, Of: of, To: docker, AtMost: 0.40},
	}
}

// Judge fills in what follows from the samples: summaries, the ratio of every
// column to each of the columns references, and the verdicts on column of
// against bound and docker.
func (r *Result) Judge(of, bound, docker string, references ...string) {
	for _, column := range r.Columns {
		column.Summary = map[Row]Summary{}
		for row, samples := range column.Samples {
			column.Summary[row] = Summarize(samples)
		}
	}
	for _, column := range r.Columns {
		column.Ratios = map[string]RowsRatios{}
		for _, to := range references {
			ratios := RowsRatios{}
			for _, row := range Rows() {
				if ratio, ok := r.ratio(row, column.Name, to); ok {
					ratios[row] = ratio
				}
			}
			column.Ratios[to] = ratios
		}
	}
	r.Targets = targets(of, bound, docker)
	for i := range r.Targets {
		target := &r.Targets[i]
		ratio, ok := r.ratio(target.Row, target.Of, target.To)
		switch {
		case !ok:
			target.Verdict = Unjudged
		case ratio <= target.AtMost:
			target.Ratio, target.Verdict = ratio, OK
		default:
			target.Ratio, target.Verdict = ratio, Missed
		}
	}
}

// ratio is the ratio of two columns' medians; ok is false when either was not
// measured.
func (r *Result) ratio(row Row, of, to string) (ratio float64, ok bool) {
	above, below := r.summary(of, row), r.summary(to, row)
	if above.N == 0 || below.N == 0 || below.Median == 0 {
		return 0, false
	}
	return above.Median / below.Median, true
}

func (r *Result) summary(column string, row Row) Summary {
	for _, c := range r.Columns {
		if c.Name == column {
			return c.Summary[row]
		}
	}
	return Summary{}
}
