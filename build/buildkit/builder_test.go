package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/remotegpu/remotegpu/build"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

func TestAbsentDaemon(t *testing.T) {
	b := New(Config{Address: "unix://" + t.TempDir() + "/none.sock"})
	_, err := b.Build(t.Context(), build.Job{Source: fstest.MapFS{}, Tag: "docker.io/x/y:z"}, nil)
	if p := problem.Of(err); p == nil || p.Reason != problem.BuildkitUnavailable || p.Hint == "" {
		t.Errorf("error is %v, want %s with a hint", err, problem.BuildkitUnavailable)
	}
}

func TestFailure(t *testing.T) {
	b := New(Config{Address: "unix:///bk.sock"})
	err := b.failure(t.Context(), "docker.io/x/y:z", errors.New("exit code: 100"), []string{"E: no such package"})
	if p := problem.Of(err); p.Reason != problem.BuildFailed || !strings.Contains(p.Message, "E: no such package") {
		t.Errorf("failure is %v", err)
	}
	gone := fmt.Errorf("solve: %w", status.Error(codes.Unavailable, "EOF"))
	if p := problem.Of(b.failure(t.Context(), "x", gone, nil)); p.Reason != problem.BuildkitUnavailable {
		t.Errorf("a daemon that died is %v", p)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.failure(ctx, "x", gone, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled build is %v", err)
	}
}

func TestTracker(t *testing.T) {
	now := time.Now()
	var seen []operation.Progress
	tr := newTracker(func(p operation.Progress) { seen = append(seen, p) })
	one, two := digest.FromString("1"), digest.FromString("2")
	tr.observe(&client.SolveStatus{Vertexes: []*client.Vertex{{Digest: one, Name: "RUN  a\n b", Started: &now}, {Digest: two, Name: "COPY"}}})
	tr.observe(&client.SolveStatus{Logs: []*client.VertexLog{{Vertex: one, Data: []byte("first\nse")}}})
	tr.observe(&client.SolveStatus{Logs: []*client.VertexLog{{Vertex: one, Data: []byte("cond\n10%\r100%\x1b\nrest")}}})
	tr.observe(&client.SolveStatus{Vertexes: []*client.Vertex{{Digest: one, Name: "RUN a", Started: &now, Completed: &now}}})
	want := []operation.Progress{
		{Step: "RUN a b", Total: 2},
		{Step: "RUN a b", Total: 2, Log: []string{"first"}},
		{Step: "RUN a b", Total: 2, Log: []string{"first", "second", "100%"}},
		{Step: "RUN a b", Done: 1, Total: 2, Log: []string{"first", "second", "100%", "rest"}},
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
	for range 3 * logLines {
		tr.add("more")
	}
	if len(tr.last()) != logLines {
		t.Errorf("%d lines are kept, want %d", len(tr.last()), logLines)
	}
	if got := short(strings.Repeat("ä", 200)); len([]rune(got)) != 100 {
		t.Errorf("short name has %d runes", len([]rune(got)))
	}
}

func TestContext(t *testing.T) {
	c := newContext(fstest.MapFS{
		"Dockerfile":    {Data: []byte("FROM scratch\n")},
		"rootfs/bin/x":  {Data: []byte("#!/bin/sh\n")},
		"rootfs/etc/.y": {Data: []byte("y")},
	})
	got := make(map[string]string)
	err := c.Walk(t.Context(), "/", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		got[path] = fmt.Sprintf("%v %d", info.Mode(), info.Size())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"Dockerfile": "-rw-r--r-- 13", "rootfs": "drwxr-xr-x 0", "rootfs/bin": "drwxr-xr-x 0", "rootfs/etc": "drwxr-xr-x 0",
		"rootfs/bin/x": "-rwxr-xr-x 10", "rootfs/etc/.y": "-rw-r--r-- 1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("context (-want +got):\n%s", diff)
	}
	file, err := c.Open("rootfs/bin/x")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if data, err := io.ReadAll(file); err != nil || string(data) != "#!/bin/sh\n" {
		t.Errorf("read %q, %v", data, err)
	}
}
