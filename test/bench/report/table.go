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

// Write prints a judged result, suite by suite: the table of medians with min
// and max, the ratios to the references, the targets and the parts.
func (r *Result) Write(out io.Writer, references ...string) error {
	var text strings.Builder
	fmt.Fprintf(&text, "\nkernel %s, %d CPUs, %.0f s\n", r.Kernel, r.CPUs, r.Seconds)
	versions := map[string]string{}
	var names []string
	for _, suite := range r.Suites {
		suite.write(&text, references)
		for _, column := range suite.Columns {
			if _, known := versions[column.Name]; !known && len(column.Versions) > 0 {
				names = append(names, column.Name)
				versions[column.Name] = strings.Join(column.Versions, "; ")
			}
		}
	}
	fmt.Fprintln(&text)
	for _, name := range names {
		fmt.Fprintf(&text, "%s: %s\n", name, versions[name])
	}
	if len(r.Suites) > 1 {
		r.writeAllTargets(&text)
	}
	_, err := io.WriteString(out, text.String())
	return err
}

// write prints one suite.
func (s *Suite) write(out io.Writer, references []string) {
	fmt.Fprintf(out, "\n%s: %s (%.0f s)\n\n", strings.ToUpper(string(s.Name)), s.Title, s.Seconds)
	s.writeMedians(out)
	for _, to := range references {
		s.writeRatios(out, to)
	}
	if len(s.Targets) > 0 {
		align(out, append([][]string{targetHeader()}, s.targetRows()...))
		fmt.Fprintln(out)
	}
	for _, column := range s.Columns {
		for _, parts := range column.Parts {
			writeParts(out, "parts of "+parts.Of+", "+column.Name, parts.Samples)
		}
	}
}

// writeAllTargets prints the targets of all suites together, at the end of a
// long report.
func (r *Result) writeAllTargets(out io.Writer) {
	table := [][]string{targetHeader()}
	for _, suite := range r.Suites {
		table = append(table, suite.targetRows()...)
	}
	fmt.Fprintln(out)
	align(out, table)
}

func (s *Suite) writeMedians(out io.Writer) {
	table := [][]string{{"column"}}
	for _, row := range s.Rows {
		table[0] = append(table[0], string(row))
	}
	for _, column := range s.Columns {
		cells := []string{column.Name}
		for _, row := range s.Rows {
			cells = append(cells, column.cell(row))
		}
		table = append(table, cells)
	}
	align(out, table)
	for _, column := range s.Columns {
		switch {
		case column.Missing != "":
			fmt.Fprintf(out, "%s: NOT MEASURED: %s\n", column.Name, column.Missing)
		case column.Failure != "":
			fmt.Fprintf(out, "%s: FAILED: %s\n", column.Name, column.Failure)
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
	case s.N == 1:
		return number(s.Median)
	case s.N >= 100:
		return fmt.Sprintf("%s (%s–%s, p99 %s)", number(s.Median), number(s.Min), number(s.Max), number(s.P99))
	}
	return fmt.Sprintf("%s (%s–%s)", number(s.Median), number(s.Min), number(s.Max))
}

// number prints small values with more digits than large ones.
func number(value float64) string {
	switch {
	case value < 10:
		return strconv.FormatFloat(value, 'f', 2, 64)
	case value < 1000:
		return strconv.FormatFloat(value, 'f', 1, 64)
	}
	return strconv.FormatFloat(value, 'f', 0, 64)
}

func (s *Suite) writeRatios(out io.Writer, to string) {
	table := [][]string{{"ratio to " + to}}
	for _, row := range s.Rows {
		table[0] = append(table[0], string(row))
	}
	shown := false
	for _, column := range s.Columns {
		cells := []string{column.Name}
		for _, row := range s.Rows {
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

func targetHeader() []string { return []string{"target", "value", "wanted", "verdict"} }

func (s *Suite) targetRows() [][]string {
	var rows [][]string
	for _, target := range s.Targets {
		what, value := target.Of.String(), "–"
		if target.To != nil {
			what += " / " + target.To.String()
		}
		if target.Verdict != Unjudged {
			value = fmt.Sprintf("%.2f", target.Value)
		}
		wanted := fmt.Sprintf("≤ %.2f", target.AtMost)
		if target.AtLeast > 0 {
			wanted = fmt.Sprintf("≥ %.0f", target.AtLeast)
		}
		rows = append(rows, []string{what, value, wanted, string(target.Verdict)})
	}
	return rows
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
	table := [][]string{{title, "median", "min", "max", "samples"}}
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
