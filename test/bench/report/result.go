// Package report turns what the benchmark measured into tables, ratios and
// verdicts.
package report

import (
	"slices"
	"time"
)

// Row is a quantity that is measured.
type Row string

// The rows.
const (
	CreatePort    Row = "create→port"
	CreateRunning Row = "create→running"
	Exec          Row = "exec true"
	StopDelete    Row = "stop+delete"
)

// Rows are all rows in the order of the table.
func Rows() []Row { return []Row{CreatePort, CreateRunning, Exec, StopDelete} }

// Result is a whole run. Durations are milliseconds.
type Result struct {
	StartedAt  time.Time `json:"started_at"`
	Seconds    float64   `json:"seconds"` // that the run took
	Kernel     string    `json:"kernel"`
	CPUs       int       `json:"cpus"`
	Containerd int       `json:"containerd"` // major version asked for
	Runs       int       `json:"runs"`
	Warmup     int       `json:"warmup"`
	Columns    []*Column `json:"columns"`
	Targets    []Target  `json:"targets"` // by Judge
}

// Column is one product's part of a run.
type Column struct {
	Name     string                `json:"name"`
	Versions []string              `json:"versions,omitempty"`
	Missing  string                `json:"missing,omitempty"` // why it was not run
	Failure  string                `json:"failure,omitempty"` // why it was not run to the end
	Samples  map[Row][]float64     `json:"samples"`           // in the order of the runs
	Spans    map[string][]float64  `json:"spans,omitempty"`   // what parts of a create took
	Removal  map[string][]float64  `json:"removal,omitempty"` // what parts of a stop and delete took
	Summary  map[Row]Summary       `json:"summary"`           // by Judge
	Ratios   map[string]RowsRatios `json:"ratios,omitempty"`  // to other columns' medians, by Judge
}

// RowsRatios are the ratios of the rows.
type RowsRatios map[Row]float64

// NewColumn makes a column without samples.
func NewColumn(name string) *Column {
	return &Column{Name: name, Samples: map[Row][]float64{}, Spans: map[string][]float64{}, Removal: map[string][]float64{}}
}

// Add appends a sample to a row.
func (c *Column) Add(row Row, took time.Duration) {
	c.Samples[row] = append(c.Samples[row], Millis(took))
}

// AddSpans appends one sample of each part to the samples of the parts.
func AddSpans(samples map[string][]float64, parts map[string]time.Duration) {
	for name, took := range parts {
		samples[name] = append(samples[name], Millis(took))
	}
}

// Millis is a duration in milliseconds.
func Millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Summary is what samples amount to.
type Summary struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
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
	return Summary{Median: median, Min: sorted[0], Max: sorted[n-1], N: n}
}
