package logfile_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/runtime/logfile"
)

// The last lines are whole, and so many, wherever the other stream comes between
// their parts and the log is rotated there; and they stay so for who goes on
// from any place in between.
func TestTailKeepsLinesWholeBetweenStreams(t *testing.T) {
	many := strings.Repeat(strings.Repeat("f", 999)+"\n", 200) // several files
	large := strings.Repeat("x", 100_000)
	for _, test := range []struct {
		name   string
		pieces []string
		want   []string // by how many lines
	}{
		{
			"a line with a pause",
			[]string{"1before\n", "1{a,", "2progress\n", "1b}\n"},
			[]string{" / ", "{a,b}| / ", "{a,b}| / progress|", "before|{a,b}| / progress|"},
		},
		{
			"a long line",
			[]string{"1before\n", "1" + large, "2progress\n", "1" + large + "\n", "1last\n"},
			[]string{" / ", "last| / ", large + large + "|last| / ", large + large + "|last| / progress|"},
		},
		{
			"both in parts",
			[]string{"1a", "2c", "1b", "2d", "1\n", "2\n"},
			[]string{" / ", " / cd|", "ab| / cd|"},
		},
		{
			"lines of the other stream before and between",
			[]string{"2one\n", "1a", "2two\n", "2three\n", "1b\n", "2four\n"},
			[]string{" / ", " / four|", "ab| / four|", "ab| / three|four|", "ab| / two|three|four|", "ab| / one|two|three|four|"},
		},
		{"rotated between", []string{"1before\n", "1a", "2" + many, "1b\n"}, []string{" / ", "ab| / ", "ab| / " + strings.Repeat("f", 999) + "|"}},
		{"no end", []string{"1a\n", "2wait", "1b\n"}, []string{" / ", "b| / ", "b| / wait", "a|b| / wait"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := newLog(t)
			killed(t, path, "", test.pieces...)
			for tail, want := range test.want {
				s := logfile.Selection{Tail: new(int64(tail))}
				all := read(t, path, s)
				if got := told(all); got != want {
					t.Fatalf("the last %d: %.200q, want %.200q", tail, got, want)
				}
				for i := 1; i < len(all); i++ {
					some, end := readSome(t, path, s, i)
					rest, _ := readSome(t, path, logfile.Selection{After: &end}, len(all)+1000)
					if got := told(slices.Concat(some, rest)); got != want {
						t.Errorf("the last %d broken off after %d: %.200q, want %.200q", tail, i, got, want)
					}
				}
			}
		})
	}
}
