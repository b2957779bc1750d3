// Package report turns what the benchmark measured into tables, ratios and
// verdicts.
package report

import (
	"math"
	"slices"
	"time"
)

// Row is a quantity that is measured. Unless its name tells another unit it is
// a time in milliseconds.
type Row string

// Result is a whole run.
type Result struct {
	StartedAt  time.Time `json:"started_at"`
	Seconds    float64   `json:"seconds"` // that the run took
	Kernel     string    `json:"kernel"`
	CPUs       int       `json:"cpus"`
	Containerd int       `json:"containerd"` // major version asked for
	Suites     []*Suite  `json:"suites"`
}

// Suite is a part of a run that can be run by itself.
type Suite struct {
	Name    SuiteName `json:"name"`
	Title   string    `json:"title"`   // what was done, for people
	Seconds float64   `json:"seconds"` // that it took
	Rows    []Row     `json:"rows"`    // in the order of the table
	Columns []*Column `json:"columns"`
	Targets []Target  `json:"targets"` // by Judge
}

// Column is one product's part of a suite.
type Column struct {
	Name     string                `json:"name"`
	Versions []string              `json:"versions,omitempty"`
	Missing  string                `json:"missing,omitempty"` // why it was not run
	Failure  string                `json:"failure,omitempty"` // why it was not run to the end
	Samples  map[Row][]float64     `json:"samples"`           // in the order they were taken
	Parts    []*Parts              `json:"parts,omitempty"`   // what rows are made of, where known
	Summary  map[Row]Summary       `json:"summary"`           // by Judge
	Ratios   map[string]RowsRatios `json:"ratios,omitempty"`  // to other columns' medians, by Judge
}

// Parts are samples of the parts of a row.
type Parts struct {
	Of      string               `json:"of"`
	Samples map[string][]float64 `json:"samples"`
}

// RowsRatios are the ratios of the rows.
type RowsRatios map[Row]float64

// NewColumn makes a column without samples.
func NewColumn(name string) *Column {
	return &Column{Name: name, Samples: map[Row][]float64{}}
}

// Add appends a time to a row.
func (c *Column) Add(row Row, took time.Duration) { c.AddValue(row, Millis(took)) }

// AddValue appends a sample to a row, in the row's unit.
func (c *Column) AddValue(row Row, value float64) {
	c.Samples[row] = append(c.Samples[row], value)
}

// AddParts appends one sample of each part.
func (c *Column) AddParts(of string, parts map[string]float64) {
	if len(parts) == 0 {
		return
	}
	at := slices.IndexFunc(c.Parts, func(p *Parts) bool { return p.Of == of })
	if at < 0 {
		at = len(c.Parts)
		c.Parts = append(c.Parts, &Parts{Of: of, Samples: map[string][]float64{}})
	}
	for name, value := range parts {
		c.Parts[at].Samples[name] = append(c.Parts[at].Samples[name], value)
	}
}

// AddSpans appends one sample of the time of each part.
func (c *Column) AddSpans(of string, spans map[string]time.Duration) {
	parts := make(map[string]float64, len(spans))
	for name, took := range spans {
		parts[name] = Millis(took)
	}
	c.AddParts(of, parts)
}

// Millis is a duration in milliseconds.
func Millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Summary is what samples amount to.
type Summary struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	P99    float64 `json:"p99"` // the smallest sample that 99 % do not exceed
	N      int     `json:"n"`
}

// Summarize sums samples up; none is the zero Summary.
func Summarize(samples []float64) Summary {
	if len(samples) == 0 {
		return Summary{}
	}
	sorted := slices.Sorted(slices.Values(samples))
	n := len(sorted)
	median := sorted[n/2]
	if n%2 == 0 {
		median = (sorted[n/2-1] + sorted[n/2]) / 2
	}
	p99 := sorted[int(math.Ceil(0.99*float64(n)))-1]
	return Summary{Median: median, Min: sorted[0], Max: sorted[n-1], P99: p99, N: n}
}
