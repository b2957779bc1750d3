// Package logfile is the log of one environment: what writes it, beside the
// container and not in the daemon, and what reads it.
//
// A log is a file and the files that were rotated away from it:
//
//	<name>             the one that is written
//	<name>.00000007    rotated; higher numbers are newer
//
// Each file begins with "#remotegpu-log 1 <number>", the number being the one
// its name gets when it is rotated, and then has one line per record:
//
//	2026-01-02T03:04:05.123456789Z stdout F a whole line
//	2026-01-02T03:04:05.123456789Z stderr P the beginning of a long line
//
// so that grep and the tools for Kubernetes' logs can read it. A record with E
// in that place has no text: whatever line of its stream is unfinished there
// stays so, since its writer was killed or its disk full. A record is
// complete when its newline is there: whatever is behind the last newline was
// torn by a crash and is cut off before anything else is written. Readers
// follow the numbers, which never go back, so no rotation can make them miss
// or repeat a line.
package logfile

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Defaults and limits of a log.
const (
	DefaultMaxSize  = 16 << 20 // bytes of a file before it is rotated
	DefaultMaxFiles = 4        // files kept, the one that is written included
	// MinMaxSize is the smallest size a log can be rotated at, in bytes.
	MinMaxSize = 64 << 10
	// MaxLine is the longest line that is one record, in bytes; longer ones, and
	// those that are written with pauses, become several of which all but the
	// last are partial.
	MaxLine = 16 << 10
)

// Stream is where a line was written to.
type Stream byte

// The streams. Zero means both, in a selection.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

// Line is one record.
type Line struct {
	Time    time.Time // zero where the file does not tell
	Stream  Stream
	Partial bool   // the line goes on in the next record of its stream
	Data    []byte // without the newline
	End     Mark   // where the reading is behind it

	ends bool // an E record: no line of its own
}

const (
	headerMark = "#remotegpu-log 1 "
	numberLen  = 8 // digits in the name of a rotated file; sorted by value all the same
	timeLayout = "2006-01-02T15:04:05.000000000Z"
	prefixLen  = len(timeLayout) + len(" stdout F ")
)

// header is the first line of file number n.
func header(n uint64) []byte {
	return append(strconv.AppendUint([]byte(headerMark), n, 10), '\n')
}

// parseHeader returns the number in a first line without its newline.
func parseHeader(line []byte) (uint64, bool) {
	digits, ok := strings.CutPrefix(string(line), headerMark)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil && n > 0
}

func rotatedName(name string, n uint64) string {
	digits := strconv.FormatUint(n, 10)
	return name + "." + strings.Repeat("0", max(0, numberLen-len(digits))) + digits
}

// rotated returns the numbers of the rotated files of a log, oldest first.
func rotated(name string) ([]uint64, error) {
	entries, err := os.ReadDir(filepath.Dir(name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	prefix := filepath.Base(name) + "."
	for _, entry := range entries {
		digits, ok := strings.CutPrefix(entry.Name(), prefix)
		if !ok || len(digits) < numberLen {
			continue
		}
		if n, err := strconv.ParseUint(digits, 10, 64); err == nil && n > 0 {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// LogOf is the name of the log that a file belongs to, as the log itself, one
// that was rotated or one that is about to become it.
func LogOf(file, extension string) (name string, ok bool) {
	if strings.HasSuffix(file, extension) {
		return file, true
	}
	name, suffix, found := cutLast(file, ".")
	if !found || !strings.HasSuffix(name, extension) {
		return "", false
	}
	n, err := strconv.ParseUint(suffix, 10, 64)
	return name, "."+suffix == newSuffix || err == nil && n > 0 && rotatedName(name, n) == file
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// Remove removes a log with all its rotated files. What is absent is removed.
func Remove(name string) error {
	numbers, err := rotated(name)
	if err != nil {
		return err
	}
	errs := []error{removeOne(name), removeOne(name + newSuffix)}
	for _, n := range numbers {
		errs = append(errs, removeOne(rotatedName(name, n)))
	}
	return errors.Join(errs...)
}

func removeOne(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// parse reads a record without its newline. What is no record, for example
// because containerd itself wrote the file, is a line of standard output
// without a time.
func parse(record []byte) Line {
	line := Line{Stream: Stdout, Data: record}
	if len(record) < prefixLen {
		return line
	}
	head := record[len(timeLayout):prefixLen]
	ends := head[8] == 'E' && len(record) == prefixLen
	if head[8] != 'F' && head[8] != 'P' && !ends {
		return line
	}
	stream := Stdout
	switch string(head[:8]) {
	case " stdout ":
	case " stderr ":
		stream = Stderr
	default:
		return line
	}
	at, err := time.Parse(timeLayout, string(record[:len(timeLayout)]))
	if err != nil || head[9] != ' ' {
		return line
	}
	return Line{Time: at, Stream: stream, Partial: head[8] == 'P', Data: record[prefixLen:], ends: ends}
}
