package helper

import (
	"bytes"
	"slices"
	"strings"
	"sync"
)

// words keeps what is worth telling of what a process writes to its standard
// error: the line that says why it ends, which a long trace may follow, else
// the last lines.
type words struct {
	mu    sync.Mutex
	rest  []byte // of a line that is not whole yet
	lines []string
	cause string
}

const (
	wordsLines = 3
	wordsWidth = 500 // bytes of a line
)

func (w *words) Write(text []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest = append(w.rest, text...)
	for {
		line, rest, whole := bytes.Cut(w.rest, []byte("\n"))
		if !whole {
			break
		}
		w.add(string(line))
		w.rest = rest
	}
	if len(w.rest) > wordsWidth {
		w.add(string(w.rest))
		w.rest = nil
	}
	return len(text), nil
}

func (w *words) add(line string) {
	line = strings.ToValidUTF8(strings.TrimSpace(line[:min(len(line), wordsWidth)]), "")
	if line == "" {
		return
	}
	if w.cause == "" && isCause(line) {
		w.cause = line
	}
	w.lines = append(w.lines[max(0, len(w.lines)+1-wordsLines):], line)
}

// isCause says whether a line is the first of what the Go runtime, or the
// dynamic linker, says when it ends a process.
func isCause(line string) bool {
	for _, prefix := range []string{"panic: ", "fatal error: ", "SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"} {
		if strings.HasPrefix(line, prefix) {
			return true
		}
	}
	return strings.Contains(line, "symbol lookup error")
}

// last is one line.
func (w *words) last() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cause != "" {
		return w.cause
	}
	lines := w.lines
	if rest := strings.TrimSpace(string(w.rest)); rest != "" {
		lines = append(slices.Clip(lines), rest)
	}
	return strings.Join(lines, "; ")
}
