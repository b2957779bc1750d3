package buildkit

import (
	"bytes"
	"slices"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"

	"github.com/remotegpu/remotegpu/runtime/operation"
)

// logLines is how many lines of a build's output progress and errors carry.
const logLines = 20

// tracker turns BuildKit's stream of vertices and output into progress.
type tracker struct {
	progress func(operation.Progress)
	vertices map[digest.Digest]*client.Vertex
	partial  map[digest.Digest][]byte // output of a vertex after its last newline
	step     string
	lines    []string
}

func newTracker(progress func(operation.Progress)) *tracker {
	return &tracker{
		progress: progress,
		vertices: make(map[digest.Digest]*client.Vertex),
		partial:  make(map[digest.Digest][]byte),
	}
}

func (t *tracker) observe(s *client.SolveStatus) {
	for _, v := range s.Vertexes {
		t.vertices[v.Digest] = v
		if v.Started != nil && v.Completed == nil {
			t.step = short(v.Name)
		}
		if v.Completed != nil {
			t.flush(v.Digest)
		}
		if v.Error != "" {
			t.add(v.Error)
		}
	}
	for _, l := range s.Logs {
		t.write(l.Vertex, l.Data)
	}
	var done int64
	for _, v := range t.vertices {
		if v.Completed != nil && v.Error == "" {
			done++
		}
	}
	if t.progress != nil {
		t.progress(operation.Progress{Step: t.step, Done: done, Total: int64(len(t.vertices)), Log: slices.Clone(t.lines)})
	}
}

// last returns the last lines of output.
func (t *tracker) last() []string {
	for vertex := range t.partial {
		t.flush(vertex)
	}
	return t.lines
}

func (t *tracker) write(vertex digest.Digest, data []byte) {
	rest := append(t.partial[vertex], data...)
	for {
		line, after, found := bytes.Cut(rest, []byte("\n"))
		if !found {
			break
		}
		t.add(string(line))
		rest = after
	}
	t.partial[vertex] = slices.Clone(rest)
}

func (t *tracker) flush(vertex digest.Digest) {
	t.add(string(t.partial[vertex]))
	delete(t.partial, vertex)
}

// add keeps a line as a terminal would show it: what follows the last carriage
// return, without the rest of control characters.
func (t *tracker) add(line string) {
	line = strings.TrimRight(line, "\r ")
	if i := strings.LastIndexByte(line, '\r'); i >= 0 {
		line = line[i+1:]
	}
	line = strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' {
			return -1
		}
		return r
	}, strings.ToValidUTF8(line, "\uFFFD"))
	if line == "" {
		return
	}
	t.lines = append(t.lines, line)
	if extra := len(t.lines) - logLines; extra > 0 {
		t.lines = slices.Delete(t.lines, 0, extra)
	}
}

// short cuts a step's name, which may be a long shell command.
func short(name string) string {
	const limit = 100
	name = strings.Join(strings.Fields(name), " ")
	if runes := []rune(name); len(runes) > limit {
		return string(runes[:limit-1]) + "…"
	}
	return name
}
