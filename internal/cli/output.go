package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// printf writes to standard output. A failure (a closed pipe, a full disk) is
// the command's failure.
func (a *app) printf(format string, args ...any) error {
	if _, err := fmt.Fprintf(a.stdout, format, args...); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// json writes a message as one document, in the API's own JSON.
func (a *app) json(message proto.Message) error { return a.writeJSON(message, true) }

// jsonLine writes a message as one line, for streams and for one of several.
func (a *app) jsonLine(message proto.Message) error { return a.writeJSON(message, false) }

func (a *app) writeJSON(message proto.Message, indent bool) error {
	text, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(message)
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	// protojson varies its spaces on purpose; programs may compare ours.
	var out bytes.Buffer
	if err = json.Compact(&out, text); err == nil && indent {
		compact := bytes.Clone(out.Bytes())
		out.Reset()
		err = json.Indent(&out, compact, "", "  ")
	}
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return a.printf("%s\n", out.Bytes())
}

// table writes rows in columns.
func (a *app) table(header []string, rows [][]string) error {
	return a.columns(append([][]string{header}, rows...))
}

// facts writes names and values; those without a value are left out.
func (a *app) facts(rows [][]string) error {
	var kept [][]string
	for _, row := range rows {
		if row[1] != "" {
			kept = append(kept, []string{row[0] + ":", row[1]})
		}
	}
	return a.columns(kept)
}

func (a *app) columns(rows [][]string) error {
	var out bytes.Buffer
	writer := tabwriter.NewWriter(&out, 0, 8, 3, ' ', 0)
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = plain(cell)
		}
		if _, err := fmt.Fprintln(writer, strings.Join(cells, "\t")); err != nil {
			return fmt.Errorf("write output: %w", err)
		}
	}
	if err := writer.Flush(); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	var trimmed strings.Builder
	for line := range strings.Lines(out.String()) {
		trimmed.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return a.printf("%s", trimmed.String())
}

// plain makes what a server or a tenant wrote fit into one cell of a terminal:
// no control characters, which could move the cursor or change colours.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, text)
}

func dash(text string) string { return orElse(text, "-") }

// age is how long ago something was, in one unit.
func age(at *timestamppb.Timestamp) string {
	if at == nil {
		return "-"
	}
	return short(time.Since(at.AsTime()))
}

func short(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

func moment(at *timestamppb.Timestamp) string {
	if at == nil {
		return ""
	}
	return at.AsTime().Local().Format(time.RFC3339)
}

// state is the last word of an enum value, in lower case.
func state(value fmt.Stringer, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(value.String(), prefix))
}
