package logfile_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/runtime/logfile"
)

func newLog(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "env.log")
}

func write(t *testing.T, path string, from, to int) {
	t.Helper()
	w := logfile.NewWriter(logfile.Config{Path: path, MaxSize: logfile.MinMaxSize, MaxFiles: 1000})
	for i := from; i < to; i++ {
		w.Write(logfile.Stdout, fmt.Appendf(nil, "line %06d\n", i))
		if i%100 == 0 {
			w.Flush()
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string, s logfile.Selection) []logfile.Line {
	t.Helper()
	var lines []logfile.Line
	if err := logfile.Read(t.Context(), path, s, func(line logfile.Line) error {
		line.Data = bytes.Clone(line.Data)
		lines = append(lines, line)
		return nil
	}); err != nil {
		t.Fatalf("read: %v", err)
	}
	return lines
}

func wantNumbers(t *testing.T, lines []logfile.Line, from, to int) {
	t.Helper()
	if len(lines) != to-from {
		t.Fatalf("got %d lines, want %d", len(lines), to-from)
	}
	for i, line := range lines {
		if want := fmt.Sprintf("line %06d", from+i); string(line.Data) != want {
			t.Fatalf("line %d is %q, want %q", i, line.Data, want)
		}
	}
}

func files(t *testing.T, path string) []string {
	t.Helper()
	found, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestWriteAndRead(t *testing.T) {
	path := newLog(t)
	before := time.Now()
	w := logfile.NewWriter(logfile.Config{Path: path})
	long := strings.Repeat("x", logfile.MaxLine)
	w.Write(logfile.Stdout, []byte("one\ntw"))
	w.Write(logfile.Stderr, []byte("error\n"))
	w.Write(logfile.Stdout, []byte("o\n\n"))
	w.Write(logfile.Stdout, []byte(long+"\n"+long+"y\n"+"end"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, line := range read(t, path, logfile.Selection{}) {
		if line.Time.Before(before) || line.Time.After(time.Now()) {
			t.Errorf("time %v of %.20q", line.Time, line.Data)
		}
		got = append(got, fmt.Sprintf("%d %t %d %.5s", line.Stream, line.Partial, len(line.Data), line.Data))
	}
	want := []string{
		"1 false 3 one", "2 false 5 error", "1 false 3 two", "1 false 0 ", "1 false 16384 xxxxx", "1 true 16384 xxxxx", "1 false 1 y", "1 false 3 end",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v %v", info.Mode(), err)
	}
	if lines := read(t, path, logfile.Selection{Stream: logfile.Stderr}); len(lines) != 1 || string(lines[0].Data) != "error" {
		t.Errorf("stderr alone: %v", lines)
	}
}

func TestRotation(t *testing.T) {
	path := newLog(t)
	w := logfile.NewWriter(logfile.Config{Path: path, MaxSize: logfile.MinMaxSize, MaxFiles: 3})
	for i := range 20_000 {
		w.Write(logfile.Stdout, fmt.Appendf(nil, "line %06d\n", i))
		if i%50 == 0 {
			w.Flush()
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	kept := files(t, path)
	if len(kept) != 3 {
		t.Errorf("kept %q, want 3 files", kept)
	}
	for _, name := range kept {
		if info, err := os.Stat(name); err != nil || info.Size() > logfile.MinMaxSize || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
	lines := read(t, path, logfile.Selection{})
	wantNumbers(t, lines, 20_000-len(lines), 20_000)
	// Another file beside it is none of its own.
	if err := os.WriteFile(path+".mine", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := logfile.Remove(path); err != nil {
		t.Fatal(err)
	}
	if left := files(t, path); len(left) != 1 || left[0] != path+".mine" {
		t.Errorf("left %q", left)
	}
	if err := logfile.Remove(path); err != nil {
		t.Errorf("remove again: %v", err)
	}
}

// A record that a crash has cut is not there, whatever byte it was cut at, and
// spoils nothing that comes after it.
func TestTornWrites(t *testing.T) {
	path := newLog(t)
	write(t, path, 0, 3)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	header := bytes.IndexByte(whole, '\n') + 1
	for cut := 0; cut <= len(whole); cut++ {
		if err := logfile.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		w := logfile.NewWriter(logfile.Config{Path: path})
		w.Write(logfile.Stdout, []byte("after\n"))
		if err := w.Close(); err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		lines := read(t, path, logfile.Selection{})
		if cut < header {
			lines = lines[len(lines)-1:] // a torn header is a foreign file
			wantLast(t, lines)
			continue
		}
		if want := bytes.Count(whole[header:cut], []byte("\n")) + 1; len(lines) != want {
			t.Fatalf("cut at %d: got %d lines, want %d", cut, len(lines), want)
		}
		wantLast(t, lines)
		wantNumbers(t, lines[:len(lines)-1], 0, len(lines)-1)
	}
}

func wantLast(t *testing.T, lines []logfile.Line) {
	t.Helper()
	if last := lines[len(lines)-1]; string(last.Data) != "after" {
		t.Fatalf("the last line is %q", last.Data)
	}
}

func TestTail(t *testing.T) {
	path := newLog(t)
	const count = 5000
	write(t, path, 0, count) // several files
	if len(files(t, path)) < 3 {
		t.Fatal("too few files")
	}
	for _, tail := range []int64{0, 1, 2, 10, 1000, 1700, 4999, 5000, 6000} {
		want := min(int(tail), count)
		wantNumbers(t, read(t, path, logfile.Selection{Tail: &tail}), count-want, count)
	}
	// What is torn does not count.
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString("2026-01-02T03:04:05.12"); err != nil {
		t.Fatal(err)
	}
	_ = file.Close()
	tail := int64(3)
	wantNumbers(t, read(t, path, logfile.Selection{Tail: &tail}), count-3, count)
}

func TestTailKeepsLongLinesWhole(t *testing.T) {
	path := newLog(t)
	w := logfile.NewWriter(logfile.Config{Path: path})
	w.Write(logfile.Stdout, []byte("short\n"+strings.Repeat("x", 10*logfile.MaxLine+1)+"\nlast\n"))
	_ = w.Close()
	tail := int64(2)
	if lines := read(t, path, logfile.Selection{Tail: &tail}); len(lines) != 12 || !lines[0].Partial || string(lines[11].Data) != "last" {
		t.Errorf("got %d records", len(lines))
	}
}

func TestSinceUntil(t *testing.T) {
	path := newLog(t)
	write(t, path, 0, 3000)
	middle := read(t, path, logfile.Selection{})[1500].Time
	var before, after int
	for _, line := range read(t, path, logfile.Selection{Since: middle}) {
		if line.Time.Before(middle) {
			t.Fatal("too early")
		}
		after++
	}
	for _, line := range read(t, path, logfile.Selection{Until: middle}) {
		if !line.Time.Before(middle) {
			t.Fatal("too late")
		}
		before++
	}
	if before+after != 3000 || before == 0 || after == 0 {
		t.Errorf("%d before and %d after", before, after)
	}
	tail := int64(100_000)
	if got := len(read(t, path, logfile.Selection{Since: middle, Tail: &tail})); got != after {
		t.Errorf("tail since: %d, want %d", got, after)
	}
	if got := read(t, path, logfile.Selection{Until: middle, Follow: true}); len(got) != before {
		t.Errorf("following until: %d, want %d", len(got), before)
	}
}

// What containerd's own file:// left is read too, and rotated away as soon as
// our writer comes.
func TestForeignFile(t *testing.T) {
	path := newLog(t)
	if err := os.WriteFile(path, []byte("plain\n"+strings.Repeat("z", 200_000)+"\nno newline"), 0o600); err != nil {
		t.Fatal(err)
	}
	texts := func() string {
		var all strings.Builder
		for _, line := range read(t, path, logfile.Selection{}) {
			all.Write(line.Data)
			if !line.Partial {
				all.WriteByte('\n')
			}
		}
		return all.String()
	}
	want := "plain\n" + strings.Repeat("z", 200_000) + "\nno newline\n"
	if got := texts(); got != want {
		t.Errorf("got %d bytes, want %d", len(got), len(want))
	}
	write(t, path, 0, 1)
	if got := texts(); got != want+"line 000000\n" {
		t.Errorf("got %d bytes, want %d", len(got), len(want)+12)
	}
}

// Every line exactly once and in order, while the log is rotated under the
// reader and its writer is replaced.
func TestFollowWhileRotating(t *testing.T) {
	path := newLog(t)
	const count = 200_000
	done := make(chan struct{})
	go func() {
		defer close(done)
		for from := 0; from < count; from += count / 4 {
			write(t, path, from, from+count/4)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	stop := errors.New("enough")
	next := 0
	err := logfile.Read(ctx, path, logfile.Selection{Follow: true}, func(line logfile.Line) error {
		if want := fmt.Sprintf("line %06d", next); string(line.Data) != want {
			return fmt.Errorf("got %q, want %q", line.Data, want)
		}
		if next++; next == count {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) {
		t.Errorf("after %d lines: %v", next, err)
	}
	<-done
}

// A reader that is slower than old files are removed is told where lines are
// missing, and how much; what it reads before and after is whole.
func TestSlowReaderIsToldOfTheGap(t *testing.T) {
	path := newLog(t)
	w := logfile.NewWriter(logfile.Config{Path: path, MaxSize: logfile.MinMaxSize, MaxFiles: 2})
	const count = 20_000
	fill := func(from, to int) {
		for i := from; i < to; i++ {
			w.Write(logfile.Stdout, fmt.Appendf(nil, "line %06d\n", i))
			if i%50 == 0 {
				w.Flush()
			}
		}
		w.Flush()
	}
	fill(0, 100)
	stop := errors.New("enough")
	next, gaps := 0, 0
	err := logfile.Read(t.Context(), path, logfile.Selection{Follow: true, Stream: logfile.Stdout}, func(line logfile.Line) error {
		if next == 0 && gaps == 0 {
			fill(100, count) // the reader is held up meanwhile
		}
		if text, found := strings.CutPrefix(string(line.Data), "remotegpu: lines were lost here: "); found {
			files := 0
			if _, err := fmt.Sscanf(text, "%d files", &files); err != nil || files < 3 || line.Stream != logfile.Stderr || line.Time.IsZero() {
				return fmt.Errorf("gap %+v %q: %w", line, text, err)
			}
			gaps++
			return nil
		}
		number := -1
		if _, err := fmt.Sscanf(string(line.Data), "line %d", &number); err != nil || number < next || number > next && gaps != 1 {
			return fmt.Errorf("got %q, want line %d, after %d gaps", line.Data, next, gaps)
		}
		if number > next {
			gaps++ // the lines after the gap follow each other
		}
		if next = number + 1; next == count {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || gaps != 2 {
		t.Errorf("after line %d and %d gaps: %v", next, gaps-1, err)
	}
}

func TestFollowBeginsBeforeTheLogAndEndsWithIt(t *testing.T) {
	path := newLog(t)
	lines := make(chan string, 10)
	result := make(chan error, 1)
	go func() {
		result <- logfile.Read(t.Context(), path, logfile.Selection{Follow: true, Gone: func(context.Context) bool { return len(lines) == 2 }},
			func(line logfile.Line) error { lines <- string(line.Data); return nil })
	}()
	write(t, path, 0, 1)
	write(t, path, 1, 2)
	for deadline := time.Now().Add(time.Minute); len(lines) < 2 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
	}
	if err := logfile.Remove(path); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-result:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the follower does not end")
	}
}

// A log that is deleted, moved or emptied under its writer is there again with
// the next line, and a follower sees every line.
func TestFileTakenAway(t *testing.T) {
	for name, take := range map[string]func(path string) error{
		"deleted": os.Remove,
		"moved":   func(path string) error { return os.Rename(path, path+".old") },
		"emptied": func(path string) error { return os.Truncate(path, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			path := newLog(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			lines := make(chan string, 100)
			result := make(chan error, 1)
			go func() {
				result <- logfile.Read(ctx, path, logfile.Selection{Follow: true}, func(line logfile.Line) error { lines <- string(line.Data); return nil })
			}()
			w := logfile.NewWriter(logfile.Config{Path: path})
			for i := range 4 {
				w.Write(logfile.Stdout, fmt.Appendf(nil, "line %d\n", i))
				w.Flush()
				select {
				case line := <-lines:
					if want := fmt.Sprintf("line %d", i); line != want {
						t.Fatalf("got %q, want %q", line, want)
					}
				case <-time.After(time.Minute):
					t.Fatalf("line %d does not come", i)
				}
				if err := take(path); err != nil {
					t.Fatal(err)
				}
			}
			over := errors.New("over")
			cancel(over)
			if err := <-result; !errors.Is(err, over) {
				t.Error(err)
			}
			w.Write(logfile.Stdout, []byte("last\n"))
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if got := read(t, path, logfile.Selection{}); len(got) != 1 || string(got[0].Data) != "last" {
				t.Errorf("%v", got)
			}
		})
	}
}

// A file that somebody has put where the log would be rotated to is kept, and
// costs no line.
func TestRotationPassesOverOtherFiles(t *testing.T) {
	path := newLog(t)
	write(t, path, 0, 1)
	taken := path + ".00000001"
	if err := os.WriteFile(taken, []byte("#remotegpu-log 1 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, path, 1, 5000)
	wantNumbers(t, read(t, path, logfile.Selection{}), 0, 5000)
	if text, err := os.ReadFile(taken); err != nil || string(text) != "#remotegpu-log 1 1\n" {
		t.Errorf("%q %v", text, err)
	}
}

// A log that is emptied and begun by another writer, before its follower looks
// again, has the same number as before: all of its lines come.
func TestEmptiedForAnotherWriter(t *testing.T) {
	path := newLog(t)
	write(t, path, 0, 100)
	next := 0
	err := logfile.Read(t.Context(), path, logfile.Selection{Follow: true, Idle: func(logfile.Mark) error {
		if next == 100 {
			if err := os.Truncate(path, 0); err != nil {
				return err
			}
			write(t, path, 100, 105)
		}
		return nil
	}}, func(line logfile.Line) error {
		if want := fmt.Sprintf("line %06d", next); string(line.Data) != want {
			return fmt.Errorf("got %q, want %q", line.Data, want)
		}
		if next++; next == 105 {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Errorf("after %d lines: %v", next, err)
	}
}

// A full disk costs lines, never the writer's time, and the log says so once
// there is room again.
func TestFullDisk(t *testing.T) {
	testutil.Require(t, testutil.Root)
	dir := smallDisk(t, "256k")
	path := filepath.Join(dir, "env.log")
	w := logfile.NewWriter(logfile.Config{Path: path})
	const count = 10_000
	for i := range count {
		w.Write(logfile.Stdout, fmt.Appendf(nil, "line %06d\n", i))
		w.Flush()
	}
	if w.Lost() == 0 {
		t.Fatal("the disk was not filled")
	}
	before := read(t, path, logfile.Selection{})
	wantNumbers(t, before, 0, len(before))
	makeRoom(t, dir, w)
	w.Write(logfile.Stdout, []byte("after\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	lines := read(t, path, logfile.Selection{})
	wantLast(t, lines)
	notice := lines[len(lines)-2]
	if want := fmt.Sprintf("remotegpu: %d lines were lost here: no space left on device", count-len(before)); string(notice.Data) != want || notice.Stream != logfile.Stderr {
		t.Errorf("notice %q, want %q", notice.Data, want)
	}
}

// A writer that is killed in the middle of its work loses what it had not
// written, and leaves a log that goes on.
func TestCopyReadsBothStreamsToTheirEnd(t *testing.T) {
	path := newLog(t)
	var out, errs [2]int
	for _, pipe := range []*[2]int{&out, &errs} {
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
	}
	w := logfile.NewWriter(logfile.Config{Path: path})
	done := make(chan error, 1)
	go func() { done <- w.Copy(out[0], errs[0]) }()
	for i := range 2000 {
		if _, err := unix.Write(out[1], fmt.Appendf(nil, "line %06d\n", i)); err != nil {
			t.Fatal(err)
		}
		if i == 1000 {
			_ = unix.Close(errs[1])
		}
	}
	_ = unix.Close(out[1])
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	_ = unix.Close(out[0])
	_ = unix.Close(errs[0])
	wantNumbers(t, read(t, path, logfile.Selection{}), 0, 2000)
}

// A prompt has no newline: it is in the log after a moment, once, and what comes
// then goes on with it. The end of the log counts it as a line.
func TestPromptsAreSeen(t *testing.T) {
	path := newLog(t)
	var out, errs [2]int
	for _, pipe := range []*[2]int{&out, &errs} {
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
	}
	w := logfile.NewWriter(logfile.Config{Path: path})
	done := make(chan error, 1)
	go func() { done <- w.Copy(out[0], errs[0]) }()
	say := func(fd int, text string) {
		t.Helper()
		if _, err := unix.Write(fd, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	text := func(tail int64) (all string) {
		t.Helper()
		for _, line := range read(t, path, logfile.Selection{Tail: &tail}) {
			all += string(line.Data)
			if !line.Partial {
				all += "|"
			}
		}
		return all
	}
	await := func(want string) {
		t.Helper()
		for limit := time.Now().Add(30 * time.Second); text(9) != want; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatalf("the log is %q, want %q", text(9), want)
			}
		}
	}
	say(out[1], "first\nready> ")
	await("first|ready> ")
	for tail, want := range []string{"", "ready> ", "first|ready> "} {
		if got := text(int64(tail)); got != want {
			t.Errorf("the last %d lines: %q, want %q", tail, got, want)
		}
	}
	say(out[1], "go")
	await("first|ready> go")
	say(out[1], "\nready> ")
	await("first|ready> go|ready> ")
	for tail, want := range []string{"", "ready> ", "ready> go|ready> ", "first|ready> go|ready> "} {
		if got := text(int64(tail)); got != want {
			t.Errorf("the last %d lines: %q, want %q", tail, got, want)
		}
	}
	_, _ = unix.Close(out[1]), unix.Close(errs[1])
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	_, _ = unix.Close(out[0]), unix.Close(errs[0])
	if got, want := text(9), "first|ready> go|ready> |"; got != want {
		t.Errorf("in the end the log is %q, want %q", got, want)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("#remotegpu-log 1 1\n2026-01-02T03:04:05.123456789Z stdout F hello\n"), int64(1), int64(0))
	f.Add([]byte("2026-01-02T03:04:05.123456789Z stderr P hello\n\n\nx"), int64(2), int64(1))
	f.Add([]byte("#remotegpu-log 1 18446744073709551615\n"), int64(0), int64(2))
	f.Add(bytes.Repeat([]byte("y"), 140_000), int64(1), int64(0))
	f.Add([]byte("#remotegpu-log 1 2\n2026-01-02T03:04:05.123456789Z stderr P hello\n2026-01-02T03:04:05.123456789Z stderr E \n2026-01-02T03:04:05.123456789Z stdout E \n"), int64(1), int64(0))
	f.Fuzz(func(t *testing.T, content []byte, tail, stream int64) {
		path := newLog(t)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		all := read(t, path, logfile.Selection{})
		size := 0
		for _, line := range all {
			size += len(line.Data)
		}
		if size > len(content) {
			t.Errorf("%d bytes of a file of %d", size, len(content))
		}
		tail = max(0, tail%1000)
		some := read(t, path, logfile.Selection{Tail: &tail})
		whole := 0
		for i, line := range some {
			// A tail has no ends of lines that it does not begin.
			if !bytes.Equal(line.Data, all[len(all)-len(some)+i].Data) && bytes.Contains(content, []byte("\n")) && len(content) < 60_000 && !bytes.Contains(content, []byte(" E \n")) {
				t.Errorf("tail differs at %d", i)
			}
			if !line.Partial {
				whole++
			}
		}
		if int64(whole) > tail+1 && len(content) < 60_000 {
			t.Errorf("%d lines, want %d", whole, tail)
		}
		read(t, path, logfile.Selection{Stream: logfile.Stream(max(0, stream) % 3), Since: time.Unix(0, 0)})
		w := logfile.NewWriter(logfile.Config{Path: path})
		w.Write(logfile.Stdout, []byte("after\n"))
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		wantLast(t, read(t, path, logfile.Selection{}))
	})
}

func BenchmarkWrite(b *testing.B) {
	for _, length := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("lines of %d bytes", length), func(b *testing.B) {
			w := logfile.NewWriter(logfile.Config{Path: filepath.Join(b.TempDir(), "env.log")})
			chunk := bytes.Repeat(append(bytes.Repeat([]byte("x"), length-1), '\n'), (64<<10)/length)
			b.SetBytes(int64(len(chunk)))
			for b.Loop() {
				w.Write(logfile.Stdout, chunk)
				w.Flush()
			}
			if err := w.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func BenchmarkRead(b *testing.B) {
	path := filepath.Join(b.TempDir(), "env.log")
	w := logfile.NewWriter(logfile.Config{Path: path})
	for range 100_000 {
		w.Write(logfile.Stdout, append(bytes.Repeat([]byte("x"), 99), '\n'))
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(100 * 100_000)
	for b.Loop() {
		if err := logfile.Read(b.Context(), path, logfile.Selection{}, func(logfile.Line) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
