package logfile_test

import (
	"bytes"
	"context"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime/logfile"
)

// told puts parts together as a client does, by stream: "text|" is a line.
func told(lines []logfile.Line) string {
	var texts [3]string
	for _, line := range lines {
		texts[line.Stream] += string(line.Data)
		if !line.Partial {
			texts[line.Stream] += "|"
		}
	}
	return texts[logfile.Stdout] + " / " + texts[logfile.Stderr]
}

// killed is a writer that is gone after these pieces, each of which begins with
// the number of its stream. What begins a line is written, as after a pause, and
// torn behind that.
func killed(t *testing.T, path, torn string, pieces ...string) {
	t.Helper()
	w := logfile.NewWriter(logfile.Config{Path: path, MaxSize: logfile.MinMaxSize, MaxFiles: 1000})
	if err := w.Open(); err != nil {
		t.Fatal(err)
	}
	for _, piece := range pieces {
		w.Write(logfile.Stream(piece[0]-'0'), []byte(piece[1:]))
		w.Pause(0)
		w.Flush()
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString(torn); err != nil {
		t.Fatal(err)
	}
	_ = file.Close()
}

// The line that a writer was killed in ends there: for who reads it all, who
// follows, who goes on from any place and who reads the last lines. What the
// next writers write first is a line of its own, and no empty line is made up.
func TestKilledWriterJoinsNoLines(t *testing.T) {
	long := strings.Repeat("x", logfile.MaxLine)
	many := strings.Repeat(strings.Repeat("f", 999)+"\n", 200) // several files
	for _, test := range []struct {
		name string
		runs [][]string
		torn string
		want string
	}{
		{"a prompt", [][]string{{"1one\nready> "}, {"1two\n"}}, "", "one|ready> |two| / "},
		{"a long line", [][]string{{"1" + long + "y"}, {"1two\n"}}, "", long + "y|two| / "},
		{"both streams", [][]string{{"1ready> ", "2wait"}, {"2err\n", "1out\n"}}, "", "ready> |out| / wait|err|"},
		{"the next one says nothing", [][]string{{"1ready> "}, {}, {}, {"1two\n"}}, "", "ready> |two| / "},
		{"again and again", [][]string{{"1a"}, {"1b"}, {"2c"}, {"1d\n"}, {"2e\n"}}, "", "a|b|d| / c|e|"},
		{"torn", [][]string{{"1ready> "}, {"1two\n"}}, "2026-01-02T03:04:05.123456789Z stdout F go", "ready> |two| / "},
		{"an empty line", [][]string{{"1ready> "}, {"1\n\n"}}, "", "ready> ||| / "},
		{"nothing unfinished", [][]string{{"1one\n"}, {"1two\n"}}, "", "one|two| / "},
		{"files ago", [][]string{{"2wait", "1" + many}, {"2err\n"}}, "", strings.ReplaceAll(many, "\n", "|") + " / wait|err|"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := newLog(t)
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errEnough)
			defer cancel()
			var followed []logfile.Line
			result, lines := make(chan error, 1), make(chan logfile.Line, 10_000)
			go func() {
				result <- logfile.Read(ctx, path, logfile.Selection{Follow: true}, func(line logfile.Line) error {
					line.Data = bytes.Clone(line.Data)
					lines <- line
					return nil
				})
			}()
			var pieces []logfile.Line // read one by one, each behind the one before
			var after logfile.Position
			for _, run := range test.runs {
				killed(t, path, test.torn, run...)
				for {
					some, end := readSome(t, path, logfile.Selection{After: &after}, 1+len(pieces)/10)
					if len(some) == 0 {
						break
					}
					pieces, after = append(pieces, some...), end
				}
			}
			for len(followed) < len(pieces) {
				select {
				case line := <-lines:
					followed = append(followed, line)
				case err := <-result:
					t.Fatalf("the follower has %.200q: %v", told(followed), err)
				}
			}
			cancel()
			all := read(t, path, logfile.Selection{})
			for how, got := range map[string][]logfile.Line{"all": all, "one by one": pieces, "followed": followed} {
				if told(got) != test.want {
					t.Errorf("%s: %.300q, want %.300q", how, told(got), test.want)
				}
			}
			// From every place in between, what was read before and what is read
			// then are the same lines.
			for i := 0; i < len(all) && i < 20; i++ {
				some, end := readSome(t, path, logfile.Selection{}, i)
				rest, _ := readSome(t, path, logfile.Selection{After: &end}, len(all))
				if i > 0 && told(slices.Concat(some, rest)) != test.want {
					t.Errorf("broken off after %d: %.300q", i, told(slices.Concat(some, rest)))
				}
			}
		})
	}
}

// The last lines are counted as they are shown, and a writer that is not the
// first adds nothing to a log whose end is whole.
func TestTailOfAKilledWriter(t *testing.T) {
	path := newLog(t)
	killed(t, path, "", "1one\nready> ")
	killed(t, path, "", "1two\n")
	killed(t, path, "", "1three\nwait")
	killed(t, path, "")
	for tail, want := range []string{" / ", "wait| / ", "three|wait| / ", "two|three|wait| / ", "ready> |two|three|wait| / "} {
		if got := told(read(t, path, logfile.Selection{Tail: new(int64(tail))})); got != want {
			t.Errorf("the last %d: %q, want %q", tail, got, want)
		}
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	killed(t, path, "")
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(before, now) {
		t.Errorf("it was %q and is %q, %v", before, now, err)
	}
}

// A gap ends the line before it, whether the writer or the reader tells of it.
func TestGapsJoinNoLines(t *testing.T) {
	path := newLog(t)
	killed(t, path, "", "1ready> ")
	some, after := readSome(t, path, logfile.Selection{}, 1)
	if err := logfile.Remove(path); err != nil {
		t.Fatal(err)
	}
	write(t, path, 0, 1)
	rest, _ := readSome(t, path, logfile.Selection{After: &after}, 10)
	if got := told(slices.Concat(some, rest)); !strings.HasPrefix(got, "ready> |line 000000| / remotegpu: lines were lost here") {
		t.Errorf("resumed: %q", got)
	}
}

// What goes on when the disk has room again is no part of what was written before
// it was full.
func TestFullDiskJoinsNoLines(t *testing.T) {
	testutil.Require(t, testutil.Root)
	dir := smallDisk(t, "64k")
	path := dir + "/env.log"
	w := logfile.NewWriter(logfile.Config{Path: path})
	w.Write(logfile.Stdout, []byte("ready> "))
	w.Write(logfile.Stderr, []byte("wait"))
	w.Pause(0)
	w.Flush()
	part := strings.Repeat("x", logfile.MaxLine)
	for range 8 {
		w.Write(logfile.Stdout, []byte(part)) // of the same line
		w.Flush()
	}
	if w.Lost() == 0 {
		t.Fatal("the disk was not filled")
	}
	makeRoom(t, dir, w)
	w.Write(logfile.Stdout, []byte("rest\nnext\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got := told(read(t, path, logfile.Selection{}))
	if !regexp.MustCompile(`^ready> x+\|x*rest\|next\| / wait\|remotegpu: \d+ lines were lost here: no space left on device\|$`).MatchString(got) {
		t.Errorf("%.50q … %.300q", got, got[max(0, len(got)-300):])
	}
}
