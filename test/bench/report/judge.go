package report

import "fmt"

// Stat is what is taken of the samples of a row.
type Stat string

// P99 is the 99th percentile; "" is the median.
const P99 Stat = "p99"

// Quantity is a stat of a row of a column.
type Quantity struct {
	Column string `json:"column"`
	Row    Row    `json:"row"`
	Stat   Stat   `json:"stat,omitempty"`
}

func (q Quantity) String() string {
	if q.Stat == "" {
		return fmt.Sprintf("%s %s", q.Column, q.Row)
	}
	return fmt.Sprintf("%s %s %s", q.Column, q.Row, q.Stat)
}

// Target is what is to be reached: a ratio of two quantities, or a quantity
// where To is nil. Nothing fails when it is missed; it is printed.
type Target struct {
	Of      Quantity  `json:"of"`
	To      *Quantity `json:"to,omitempty"`
	AtMost  float64   `json:"at_most,omitempty"`
	AtLeast float64   `json:"at_least,omitempty"` // instead of AtMost
	Value   float64   `json:"value,omitempty"`
	Verdict Verdict   `json:"verdict"`
}

// Verdict says how a target was met.
type Verdict string

// The verdicts.
const (
	OK       Verdict = "ok"
	Missed   Verdict = "missed"
	Unjudged Verdict = "not measured"
)

// Judge fills in what follows from the samples: summaries, the ratio of every
// column to each of the columns references, and the verdicts.
func (r *Result) Judge(names Names, references ...string) {
	for _, suite := range r.Suites {
		suite.judge(names, references)
	}
}

func (s *Suite) judge(names Names, references []string) {
	for _, column := range s.Columns {
		column.Summary = map[Row]Summary{}
		for row, samples := range column.Samples {
			column.Summary[row] = Summarize(samples)
		}
	}
	for _, column := range s.Columns {
		column.Ratios = map[string]RowsRatios{}
		for _, to := range references {
			ratios := RowsRatios{}
			for _, row := range s.Rows {
				above, ok := s.value(Quantity{Column: column.Name, Row: row})
				below, known := s.value(Quantity{Column: to, Row: row})
				if ok && known && below > 0 {
					ratios[row] = above / below
				}
			}
			column.Ratios[to] = ratios
		}
	}
	s.Targets = targets(s.Name, names)
	for i := range s.Targets {
		s.Targets[i].judge(s)
	}
}

func (t *Target) judge(s *Suite) {
	t.Verdict = Unjudged
	value, ok := s.value(t.Of)
	if !ok {
		return
	}
	if t.To != nil {
		below, ok := s.value(*t.To)
		if !ok || below <= 0 {
			return
		}
		value /= below
	}
	t.Value, t.Verdict = value, Missed
	if (t.AtLeast > 0 && value >= t.AtLeast) || (t.AtLeast == 0 && value <= t.AtMost) {
		t.Verdict = OK
	}
}

// value is a quantity; ok is false when it was not measured.
func (s *Suite) value(q Quantity) (value float64, ok bool) {
	for _, column := range s.Columns {
		if column.Name != q.Column {
			continue
		}
		summary := column.Summary[q.Row]
		if q.Stat == P99 {
			return summary.P99, summary.N > 0
		}
		return summary.Median, summary.N > 0
	}
	return 0, false
}
