package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// chunk is about how much is written at once, bytes: what a program does whose
// standard output is a pipe.
const chunk = 32 << 10

// written is how the writing of lines went.
type written struct {
	Lines   int64   `json:"lines"`
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"` // from the first write to the end of the last
	Longest float64 `json:"longest"` // the longest write, seconds
	Error   string  `json:"error,omitempty"`
}

func (w written) String() string {
	text, err := json.Marshal(w)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// writeLines writes at least total bytes in numbered lines of that length, at
// most rate bytes a second unless that is 0. Who was kept waiting does not
// catch up faster than a writer that can.
func writeLines(out io.Writer, total int64, length int, rate int64) (did written) {
	perChunk := max(1, chunk/length)
	buffer := make([]byte, 0, (perChunk+1)*length)
	start := time.Now()
	for did.Bytes < total {
		buffer = buffer[:0]
		for range perChunk {
			buffer = appendLine(buffer, did.Lines, length)
			did.Lines++
			if did.Bytes += int64(length); did.Bytes >= total {
				break
			}
		}
		before := time.Now()
		if _, err := out.Write(buffer); err != nil {
			did.Error = err.Error()
			break
		}
		did.Longest = max(did.Longest, time.Since(before).Seconds())
		if rate > 0 {
			due := time.Duration(float64(did.Bytes) / float64(rate) * float64(time.Second))
			time.Sleep(due - time.Since(start))
		}
	}
	did.Seconds = time.Since(start).Seconds()
	return did
}

// appendLine adds line number n, padded to the length with its newline.
func appendLine(to []byte, n int64, length int) []byte {
	from := len(to)
	to = fmt.Appendf(to, "line %012d ", n)
	for len(to)-from < length-1 {
		to = append(to, '.')
	}
	return append(to, '\n')
}
