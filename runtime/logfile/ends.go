package logfile

import (
	"bytes"
	"errors"
	"io"
	"time"
)

// cutTorn removes what is behind the last newline, and returns the whole lines
// that the file ends with, or some of them.
func (w *Writer) cutTorn() (tail []byte, err error) {
	from := max(0, w.size-tornLimit)
	tail = make([]byte, w.size-from)
	if _, err := w.file.ReadAt(tail, from); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	end := bytes.LastIndexByte(tail, '\n') + 1
	tail = tail[:end]
	if whole := from + int64(end); whole < w.size {
		w.size = whole
		if err := w.file.Truncate(whole); err != nil {
			return nil, err
		}
	}
	if from > 0 {
		tail = tail[bytes.IndexByte(tail, '\n')+1:]
	}
	return tail, nil
}

// endLines ends the lines that the writer before this one has left unfinished,
// as one that was killed does: what this one writes first is no part of them.
// tail is what the log ends with. It is done once in the life of a writer.
func (w *Writer) endLines(tail []byte) error {
	if w.joined {
		return nil
	}
	var records []byte
	for _, stream := range w.unfinished(tail) {
		records = appendEnd(records, w.now(), stream)
	}
	if len(records) > 0 {
		if _, err := w.put(records); err != nil {
			return err
		}
	}
	w.joined = true
	return nil
}

// unfinished are the streams whose last record is partial, or further back than
// tail reaches: a reader that has seen that line finished passes over its end.
func (w *Writer) unfinished(tail []byte) []Stream {
	var known, open [3]bool
	for len(tail) > 0 && (!known[Stdout] || !known[Stderr]) {
		start := bytes.LastIndexByte(tail[:len(tail)-1], '\n') + 1
		record := tail[start : len(tail)-1]
		tail = tail[:start]
		if number, ok := parseHeader(record); ok && start == 0 {
			if number == 1 { // the log has nothing before it
				known[Stdout], known[Stderr] = true, true
			}
			break
		}
		if line := parse(record); !known[line.Stream] {
			known[line.Stream], open[line.Stream] = true, line.Partial
		}
	}
	var streams []Stream
	for _, stream := range []Stream{Stdout, Stderr} {
		if open[stream] || !known[stream] {
			streams = append(streams, stream)
		}
	}
	return streams
}

// appendEnd appends the record that ends an unfinished line of a stream.
func appendEnd(to []byte, at time.Time, stream Stream) []byte {
	start := len(to)
	to = append(appendPrefix(to, at, stream), '\n')
	to[start+prefixLen-2] = 'E'
	return to
}

// endLines ends the lines whose ends will not come.
func (r *reader) endLines() error {
	for _, stream := range []Stream{Stdout, Stderr} {
		if !r.open[stream] {
			continue
		}
		r.open[stream] = false
		if err := r.emit(Line{Time: time.Now(), Stream: stream, End: r.mark()}); err != nil {
			return err
		}
	}
	return nil
}
