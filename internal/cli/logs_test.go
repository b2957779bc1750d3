package cli_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/gen/remotegpu/v1/remotegpuv1connect"
	"github.com/remotegpu/remotegpu/internal/cli"
)

// logged is the log of the fake: its lines, and how often what reads it breaks
// off.
type logged struct {
	lines  []*remotegpuv1.LogLine
	drops  int  // so many calls break off after two lines
	down   int  // so many calls are refused after the first drop
	silent bool // no tokens: an older node
	asked  []*remotegpuv1.GetLogsRequest
	broken error
}

func (f *fake) GetLogs(_ context.Context, r *remotegpuv1.GetLogsRequest, stream remotegpuv1connect.EnvironmentServiceGetLogsServerStream) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.logged
	l.asked = append(l.asked, proto.CloneOf(r))
	if len(l.asked) > 1 && l.down > 0 {
		l.down--
		return l.broken
	}
	from := 0
	if r.GetResumeAfter() != "" {
		var err error
		if from, err = strconv.Atoi(r.GetResumeAfter()); err != nil {
			return connect.NewError(connect.CodeInvalidArgument, err.Error())
		}
	} else if r.Tail != nil {
		from = len(l.lines) - int(r.GetTail())
	}
	send := func(lines []*remotegpuv1.LogLine) error {
		message := &remotegpuv1.GetLogsResponse{Lines: lines}
		if !l.silent {
			message.ResumeToken = strconv.Itoa(from + len(lines))
		}
		return stream.Send(message)
	}
	if l.drops > 0 {
		l.drops--
		if err := send(l.lines[from:min(from+2, len(l.lines))]); err != nil {
			return err
		}
		return l.broken
	}
	return send(l.lines[from:])
}

func logLines(count int) []*remotegpuv1.LogLine {
	lines := make([]*remotegpuv1.LogLine, count)
	for i := range lines {
		lines[i] = &remotegpuv1.LogLine{Stream: remotegpuv1.LogStream_LOG_STREAM_STDOUT, Data: fmt.Appendf(nil, "%d", i)}
	}
	return lines
}

func TestLogsFollowThroughBrokenConnections(t *testing.T) {
	stopping := connect.NewError(connect.CodeUnavailable, "the node is stopping")
	const note = "connection lost, trying again\n"
	for _, test := range []struct {
		name           string
		args           string
		log            logged
		code           int
		stdout, stderr string
		calls          int
	}{
		{"once", "-f", logged{drops: 1}, 0, "0\n1\n2\n3\n4\n", note, 2},
		{"twice, and away for a while", "-f", logged{drops: 2, down: 2}, 0, "0\n1\n2\n3\n4\n", note + note, 5},
		{"with a tail", "-f --tail 3", logged{drops: 1}, 0, "2\n3\n4\n", note, 2},
		{"for too long", "-f --reconnect-for 1ns", logged{drops: 1, down: 100}, 6, "0\n1\n", note + "Error: the node is stopping\n", 2},
		{"without -f", "", logged{drops: 1}, 6, "0\n1\n", "Error: the node is stopping\n", 1},
		{"an older node", "-f", logged{drops: 1, silent: true}, 6, "0\n1\n", "Error: the node is stopping\n", 1},
		{"another failure", "-f", logged{drops: 1, broken: connect.NewError(connect.CodeNotFound, "gone")}, 3, "0\n1\n", "Error: gone\n", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFake(t)
			test.log.lines = logLines(5)
			if test.log.broken == nil {
				test.log.broken = stopping
			}
			f.logged = &test.log
			code, stdout, stderr := f.run(t, append([]string{"env", "logs", "demo"}, strings.Fields(test.args)...)...)
			if code != test.code || stdout != test.stdout || stderr != test.stderr || len(test.log.asked) != test.calls {
				t.Errorf("code %d after %d calls\n%s\n%s", code, len(test.log.asked), stdout, stderr)
			}
			for _, request := range test.log.asked[1:] {
				if request.Tail != nil || request.GetResumeAfter() == "" || !request.GetFollow() {
					t.Errorf("it is resumed with %v", request)
				}
			}
		})
	}
}

// A line that comes in parts stays one when the connection breaks between them.
func TestLogsKeepALineWhole(t *testing.T) {
	f := newFake(t)
	f.logged = &logged{lines: logLines(4), drops: 1, broken: connect.NewError(connect.CodeUnavailable, "the node is stopping")}
	f.logged.lines[1].Partial = true
	if code, stdout, stderr := f.run(t, "env", "logs", "-f", "demo"); code != 0 || stdout != "0\n12\n3\n" {
		t.Errorf("code %d\n%s\n%s", code, stdout, stderr)
	}
}

// part is a line, or a part of one that goes on.
func part(stream remotegpuv1.LogStream, text string, partial bool) *remotegpuv1.LogLine {
	return &remotegpuv1.LogLine{Stream: stream, Data: []byte(text), Partial: partial, Time: timestamppb.New(time.Unix(int64(len(text)), 0))}
}

const (
	out  = remotegpuv1.LogStream_LOG_STREAM_STDOUT
	errs = remotegpuv1.LogStream_LOG_STREAM_STDERR
)

// Each output has whole lines, whatever comes on the other one between their
// parts and however the connection breaks.
func TestLogsKeepLinesOfEachOutputWhole(t *testing.T) {
	lines := []*remotegpuv1.LogLine{
		part(out, `{"a":1,`, true), part(errs, "progress", false), part(errs, "wa", true), part(out, `"b":2}`, false),
		part(errs, "it", false), part(out, "ready> ", true), part(errs, "half", true),
	}
	const at = "1970-01-01T00:00:0"
	for _, test := range []struct {
		name, args     string
		drops          int
		stdout, stderr string
	}{
		{"at once", "", 0, "{\"a\":1,\"b\":2}\nready> \n", "progress\nwait\nhalf\n"},
		{"followed", "-f", 1, "{\"a\":1,\"b\":2}\nready> \n", "progress\nconnection lost, trying again\nwait\nhalf\n"},
		{
			"with times", "-t", 0, at + "7.000000000Z {\"a\":1,\"b\":2}\n" + at + "7.000000000Z ready> \n",
			at + "8.000000000Z progress\n" + at + "2.000000000Z wait\n" + at + "4.000000000Z half\n",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFake(t)
			f.logged = &logged{lines: lines, drops: test.drops, broken: connect.NewError(connect.CodeUnavailable, "the node is stopping")}
			code, stdout, stderr := f.run(t, append([]string{"env", "logs", "demo"}, strings.Fields(test.args)...)...)
			if code != 0 || stdout != test.stdout || stderr != test.stderr {
				t.Errorf("code %d\n%q\n%q", code, stdout, stderr)
			}
		})
	}
}

// Where both outputs go to one place, all is shown as it came, and no line is
// glued to one of the other output.
func TestLogsOfBothOutputsInOnePlace(t *testing.T) {
	f := newFake(t)
	f.logged = &logged{lines: []*remotegpuv1.LogLine{
		part(out, `{"a":1,`, true), part(errs, "progress", false), part(out, `"b":2}`, false), part(out, "ready> ", true), part(errs, "wait", true), part(out, "", false),
	}}
	name := filepath.Join(t.TempDir(), "both")
	var opened [2]*os.File
	for i := range opened {
		file, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = file.Close() })
		opened[i] = file
	}
	code := cli.Run(t.Context(), []string{"--addr", f.addr, "env", "logs", "demo"}, strings.NewReader(""), opened[0], opened[1], func(string) string { return "" })
	got, err := os.ReadFile(name)
	if want := "{\"a\":1,\nprogress\n\"b\":2}\nready> \nwait\n"; code != 0 || err != nil || string(got) != want {
		t.Errorf("code %d, %v\n%q, want\n%q", code, err, got, want)
	}
}

// A line that is ended without more text, as that of a killed writer, is no
// empty line, whatever has come between.
func TestLogsOfAKilledWriter(t *testing.T) {
	f := newFake(t)
	f.logged = &logged{lines: []*remotegpuv1.LogLine{
		part(out, "cut", true), part(out, "", false), part(out, "", false),
		part(out, "ready> ", true), part(errs, "wait", true), part(out, "", false), part(errs, "", false), part(out, "next", false),
	}}
	if code, stdout, stderr := f.run(t, "env", "logs", "demo"); code != 0 || stdout != "cut\n\nready> \nnext\n" || stderr != "wait\n" {
		t.Errorf("code %d\n%q\n%q", code, stdout, stderr)
	}
}
