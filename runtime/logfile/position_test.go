package logfile_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/runtime/logfile"
)

var errEnough = errors.New("enough")

// readSome reads behind a position, at most so many lines, and returns the
// position behind the last one.
func readSome(t *testing.T, path string, s logfile.Selection, most int) (lines []logfile.Line, after logfile.Position) {
	t.Helper()
	keep := func(mark logfile.Mark) error {
		at, err := mark.Position()
		if err == nil {
			after = at
		}
		return err
	}
	s.Idle = keep
	err := logfile.Read(t.Context(), path, s, func(line logfile.Line) error {
		if len(lines) == most {
			return errEnough
		}
		mark := line.End
		line.Data = bytes.Clone(line.Data)
		lines = append(lines, line)
		return keep(mark)
	})
	if err != nil && !errors.Is(err, errEnough) {
		t.Fatalf("read: %v", err)
	}
	return lines, after
}

// Reading piece by piece gives the same lines as reading at once, at whatever
// line it is broken off, and while the log is rotated and goes to other writers
// between the pieces.
func TestReadAfter(t *testing.T) {
	path := newLog(t)
	const count = 6000 // several files
	next, written := 0, 0
	var after logfile.Position
	for piece := 1; next < count; piece = piece*2%1001 + 1 {
		if written < count {
			write(t, path, written, written+500)
			written += 500
		}
		lines, end := readSome(t, path, logfile.Selection{After: &after}, piece)
		wantNumbers(t, lines, next, next+len(lines))
		next, after = next+len(lines), end
	}
	if len(files(t, path)) < 3 {
		t.Fatal("too few files")
	}
	if lines, end := readSome(t, path, logfile.Selection{After: &after}, 1); len(lines) > 0 || end != after {
		t.Errorf("behind the end: %d lines, %+v, want %+v", len(lines), end, after)
	}
}

// The place before the first line of a log that is not there yet is one, too.
func TestReadAfterNothing(t *testing.T) {
	path := newLog(t)
	none := int64(0)
	if _, after := readSome(t, path, logfile.Selection{Tail: &none}, 1); !after.IsZero() {
		t.Errorf("before the first file: %+v", after)
	}
	write(t, path, 0, 10)
	lines, _ := readSome(t, path, logfile.Selection{After: &logfile.Position{}}, 100)
	wantNumbers(t, lines, 0, 10)
	if _, after := readSome(t, path, logfile.Selection{Tail: &none}, 1); after.IsZero() {
		t.Error("there is no place behind the last line")
	} else {
		write(t, path, 10, 20)
		lines, _ := readSome(t, path, logfile.Selection{After: &after}, 100)
		wantNumbers(t, lines, 10, 20)
	}
}

// A selection of one stream has a place behind what it does not show.
func TestReadAfterOtherStream(t *testing.T) {
	path := newLog(t)
	write(t, path, 0, 5000)
	lines, after := readSome(t, path, logfile.Selection{Stream: logfile.Stderr}, 1)
	if len(lines) > 0 {
		t.Fatalf("%d lines", len(lines))
	}
	if lines, _ := readSome(t, path, logfile.Selection{After: &after}, 1); len(lines) > 0 {
		t.Errorf("%q comes again", lines[0].Data)
	}
}

// What cannot be resumed is told, and what comes after it comes once.
func TestReadAfterWhatIsGone(t *testing.T) {
	fill := func(t *testing.T, path string, from, to, keep int) {
		t.Helper()
		w := logfile.NewWriter(logfile.Config{Path: path, MaxSize: logfile.MinMaxSize, MaxFiles: keep})
		for i := from; i < to; i++ {
			w.Write(logfile.Stdout, fmt.Appendf(nil, "line %06d\n", i))
			if i%50 == 0 {
				w.Flush()
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	try := func(err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	for name, test := range map[string]struct {
		lose  func(t *testing.T, path string) error
		first int // line that comes after the notice; -1: some later one
		want  string
	}{
		"rotated away": {func(t *testing.T, path string) error { t.Helper(); fill(t, path, 5000, 20_000, 2); return nil }, -1, "files of the log were removed before they were read"},
		"deleted": {func(t *testing.T, path string) error {
			t.Helper()
			w := logfile.NewWriter(logfile.Config{Path: path, MaxFiles: 1000}) // has it open
			w.Write(logfile.Stdout, []byte("line 005000\n"))
			w.Flush()
			if err := os.Remove(path); err != nil {
				return err
			}
			w.Write(logfile.Stdout, []byte("line 019999\n"))
			return w.Close()
		}, 19_999, "1 files of the log were removed before they were read"},
		"deleted and begun by another writer": {func(t *testing.T, path string) error {
			t.Helper()
			if err := os.Remove(path); err != nil {
				return err
			}
			fill(t, path, 19_990, 20_000, 1000)
			return nil
		}, 19_990, "the log was removed and begun anew before it was read"},
		"emptied": {func(t *testing.T, path string) error {
			t.Helper()
			if err := os.Truncate(path, 0); err != nil {
				return err
			}
			fill(t, path, 19_990, 20_000, 1000)
			return nil
		}, 19_990, "the log was removed and begun anew before it was read"},
		"of another life": {func(t *testing.T, path string) error {
			t.Helper()
			if err := logfile.Remove(path); err != nil {
				return err
			}
			fill(t, path, 19_990, 20_000, 1000)
			return nil
		}, 19_990, "the log was removed and begun anew before it was read"},
	} {
		t.Run(name, func(t *testing.T) {
			path := newLog(t)
			fill(t, path, 0, 5000, 1000)
			lines, after := readSome(t, path, logfile.Selection{}, 4990)
			wantNumbers(t, lines, 0, 4990)
			if err := try(test.lose(t, path)); err != nil {
				t.Fatal(err)
			}
			lines, end := readSome(t, path, logfile.Selection{After: &after, Stream: logfile.Stdout}, 100_000)
			if len(lines) < 2 {
				t.Fatalf("%d lines", len(lines))
			}
			notice := lines[0]
			if text := string(notice.Data); notice.Stream != logfile.Stderr || notice.Time.IsZero() || !strings.HasPrefix(text, "remotegpu: lines were lost here: ") || !strings.HasSuffix(text, test.want) {
				t.Errorf("notice %+v %q, want %q", notice, text, test.want)
			}
			first := test.first
			if first < 0 {
				first = 20_000 - (len(lines) - 1)
				if first <= 5000 {
					t.Fatalf("nothing was rotated away: line %d is there", first)
				}
			}
			wantNumbers(t, lines[1:], first, 20_000)
			if lines, _ := readSome(t, path, logfile.Selection{After: &end}, 1); len(lines) > 0 {
				t.Errorf("%q comes again", lines[0].Data)
			}
		})
	}
}

// A follower whose file is gone, with nothing behind it yet, keeps its place
// until there is.
func TestReadAfterKeepsAPlaceThatIsGone(t *testing.T) {
	path := newLog(t)
	write(t, path, 0, 10)
	_, after := readSome(t, path, logfile.Selection{}, 5)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if lines, still := readSome(t, path, logfile.Selection{After: &after}, 10); len(lines) > 0 || still != after {
		t.Errorf("%d lines, then at %+v, want %+v", len(lines), still, after)
	}
	write(t, path, 10, 12)
	lines, _ := readSome(t, path, logfile.Selection{After: &after}, 10)
	if len(lines) != 3 || !strings.Contains(string(lines[0].Data), "lines were lost here") {
		t.Fatalf("%d lines", len(lines))
	}
	wantNumbers(t, lines[1:], 10, 12)
}

// A file that containerd itself wrote has no number; a place in it is good
// after our writer has given it one.
func TestReadAfterInForeignFile(t *testing.T) {
	path := newLog(t)
	if err := os.WriteFile(path, []byte(strings.Repeat("plain\n", 1000)+"last\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, after := readSome(t, path, logfile.Selection{}, 1000)
	for range 2 {
		lines, _ := readSome(t, path, logfile.Selection{After: &after}, 2)
		if len(lines) == 0 || string(lines[0].Data) != "last" {
			t.Fatalf("got %d lines", len(lines))
		}
		write(t, path, 0, 1) // rotates it
	}
	if len(files(t, path)) != 2 {
		t.Fatal("it was not rotated")
	}
}

// Whatever position is asked for, reading neither fails nor gives a line twice.
func FuzzReadAfter(f *testing.F) {
	f.Add(uint64(1), int64(0), uint64(0))
	f.Add(uint64(2), int64(100), uint64(1))
	f.Add(uint64(1<<64-1), int64(1<<63-1), uint64(1<<64-1))
	f.Fuzz(func(t *testing.T, number uint64, offset int64, sum uint64) {
		if number == 0 || offset < 0 {
			t.Skip("no position")
		}
		path := newLog(t)
		write(t, path, 0, 100)
		after := logfile.Position{Number: number, Offset: offset, Sum: sum}
		lines, _ := readSome(t, path, logfile.Selection{After: &after}, 1000)
		if len(lines) > 101 {
			t.Errorf("%d lines", len(lines))
		}
	})
}
