package report

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Write prints a judged result: the table of medians with min and max, the
// ratios to the references, the targets and the spans.
func (r *Result) Write(out io.Writer, references ...string) error {
	var text strings.Builder
	fmt.Fprintf(&text, "\n%d runs after %d for warming up, interleaved, in %.0f s; kernel %s, %d CPUs; medians in ms (min–max)\n\n",
		r.Runs, r.Warmup, r.Seconds, r.Kernel, r.CPUs)
	r.writeMedians(&text)
	for _, to := range references {
		r.writeRatios(&text, to)
	}
	r.writeTargets(&text)
	r.writeSpans(&text)
	for _, column := range r.Columns {
		if len(column.Versions) > 0 {
			fmt.Fprintf(&text, "%s: %s\n", column.Name, strings.Join(column.Versions, "; "))
		}
	}
	_, err := io.WriteString(out, text.String())
	return err
}

func (r *Result) writeMedians(out io.Writer) {
	table := [][]string{{"column"}}
	for _, row := range Rows() {
		table[0] = append(table[0], string(row))
	}
	for _, column := range r.Columns {
		cells := []string{column.Name}
		for _, row := range Rows() {
			cells = append(cells, column.cell(row))
		}
		table = append(table, cells)
	}
	align(out, table)
	for _, column := range r.Columns {
		switch {
		case column.Missing != "":
			fmt.Fprintf(out, "%s: NOT MEASURED: %s\n", column.Name, column.Missing)
		case column.Failure != "":
			fmt.Fprintf(out, "%s: FAILED after %d runs: %s\n", column.Name, len(column.Samples[StopDelete]), column.Failure)
		}
	}
	fmt.Fprintln(out)
}

func (c *Column) cell(row Row) string {
	s := c.Summary[row]
	switch {
	case c.Missing != "":
		return "missing"
	case s.N == 0:
		return "–"
	}
	return fmt.Sprintf("%.1f (%.1f–%.1f)", s.Median, s.Min, s.Max)
}

func (r *Result) writeRatios(out io.Writer, to string) {
	table := [][]string{{"ratio to " + to}}
	for _, row := range Rows() {
		table[0] = append(table[0], string(row))
	}
	shown := false
	for _, column := range r.Columns {
		cells := []string{column.Name}
		for _, row := range Rows() {
			ratio, ok := column.Ratios[to][row]
			if !ok {
				cells = append(cells, "–")
				continue
			}
			shown = true
			cells = append(cells, fmt.Sprintf("%.2f", ratio))
		}
		table = append(table, cells)
	}
	if shown {
		align(out, table)
		fmt.Fprintln(out)
	}
}

func (r *Result) writeTargets(out io.Writer) {
	table := [][]string{{"target", "ratio", "at most", "verdict"}}
	for _, target := range r.Targets {
		ratio := "–"
		if target.Verdict != Unjudged {
			ratio = fmt.Sprintf("%.2f", target.Ratio)
		}
		table = append(table, []string{
			fmt.Sprintf("%s, %s to %s", target.Row, target.Of, target.To),
			ratio, fmt.Sprintf("%.2f", target.AtMost), string(target.Verdict),
		})
	}
	align(out, table)
	fmt.Fprintln(out)
}

// writeSpans prints what the parts of a create and of a stop with delete took,
// for every column that tells.
func (r *Result) writeSpans(out io.Writer) {
	for _, column := range r.Columns {
		writeParts(out, "parts of a create, "+column.Name, column.Spans)
		writeParts(out, "parts of a stop+delete, "+column.Name, column.Removal)
	}
}

// writeParts prints the medians of parts, the longest first.
func writeParts(out io.Writer, title string, parts map[string][]float64) {
	if len(parts) == 0 {
		return
	}
	sums := map[string]Summary{}
	for name, samples := range parts {
		sums[name] = Summarize(samples)
	}
	names := slices.SortedFunc(maps.Keys(sums), func(a, b string) int {
		return cmp.Or(cmp.Compare(sums[b].Median, sums[a].Median), cmp.Compare(a, b))
	})
	table := [][]string{{title, "median", "min", "max", "runs"}}
	for _, name := range names {
		s := sums[name]
		table = append(table, []string{
			name, fmt.Sprintf("%.2f", s.Median), fmt.Sprintf("%.2f", s.Min), fmt.Sprintf("%.2f", s.Max), strconv.Itoa(s.N),
		})
	}
	align(out, table)
	fmt.Fprintln(out)
}

// align prints a table: the first column flush left, the others flush right.
func align(out io.Writer, table [][]string) {
	widths := make([]int, len(table[0]))
	for _, row := range table {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range table {
		var line strings.Builder
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i == 0 {
				line.WriteString(cell + pad)
			} else {
				line.WriteString("  " + pad + cell)
			}
		}
		fmt.Fprintln(out, line.String())
	}
}
