package cli_test

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/google/go-cmp/cmp"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/gen/remotegpu/v1/remotegpuv1connect"
)

// watched is what the fake answers to one watch after the other.
type watched struct {
	calls []watchCall
	mu    sync.Mutex
	asked []string // resume tokens
}

// watchCall is one answer: these tokens, and then its end.
type watchCall struct {
	tokens string // "-": a message without one
	sends  []*remotegpuv1.WatchEnvironmentsResponse
	end    func(*fake) error
	f      *fake
}

func (w *watched) serve(stream remotegpuv1connect.EnvironmentServiceWatchEnvironmentsServerStream, r *remotegpuv1.WatchEnvironmentsRequest) error {
	w.mu.Lock()
	w.asked = append(w.asked, r.GetResumeAfter())
	call := w.calls[min(len(w.asked), len(w.calls))-1]
	w.mu.Unlock()
	for token := range strings.FieldsSeq(call.tokens) {
		if err := stream.Send(&remotegpuv1.WatchEnvironmentsResponse{Environment: environment(), ResumeToken: strings.Trim(token, "-")}); err != nil {
			return err
		}
	}
	for _, message := range call.sends {
		if err := stream.Send(message); err != nil {
			return err
		}
	}
	return call.end(call.f)
}

func TestWatchGoesOnThroughBrokenConnections(t *testing.T) {
	dies := func(f *fake) error { f.die(); return nil }
	stops := func(*fake) error { return connect.NewError(connect.CodeUnavailable, "the node is stopping") }
	refuses := func(*fake) error { return connect.NewError(connect.CodeInvalidArgument, "no") }
	tooOld := func(f *fake) error {
		return apiError(f.t, connect.CodeOutOfRange, "RESUME_TOKEN_TOO_OLD", "too old", "resume_after", "watch anew")
	}
	const lost, anew = "connection lost, trying again", "all environments follow"
	for _, test := range []struct {
		name, args string
		calls      []watchCall
		code       int
		asked      []string
		tokens     []string // that were shown
		says       []string
	}{
		{"stopped", "", []watchCall{{tokens: "- 1 2", end: stops}, {tokens: "3", end: refuses}}, 2, []string{"", "2"}, []string{"", "1", "2", "3"}, []string{lost, "no"}},
		{"restarted", "", []watchCall{{tokens: "1", end: stops}, {end: tooOld}, {tokens: "7", end: refuses}}, 2, []string{"", "1", ""}, []string{"1", "7"}, []string{lost, anew}},
		// Whether a death is told as "cannot reach" or as a connection that broke
		// depends on how far the answer had come.
		{"gone", "--reconnect-for 1ms", []watchCall{{tokens: "1", end: stops}, {end: dies}}, 6, []string{"", "1"}, []string{"1"}, []string{lost, "the node"}},
		{"dead from the beginning", "", []watchCall{{end: dies}}, 6, []string{""}, nil, []string{"the node"}},
		{"an old token of the caller", "--resume-after 0", []watchCall{{end: tooOld}}, 2, []string{"0"}, nil, []string{"too old"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFake(t)
			for i := range test.calls {
				test.calls[i].f = f
			}
			f.watched = &watched{calls: test.calls}
			code, stdout, stderr := f.run(t, append([]string{"env", "watch", "-o", "json"}, strings.Fields(test.args)...)...)
			if code != test.code || strings.Contains(stderr, "envelope") {
				t.Errorf("code %d, want %d: %s", code, test.code, stderr)
			}
			for _, text := range test.says {
				if !strings.Contains(stderr, text) {
					t.Errorf("does not say %q: %s", text, stderr)
				}
			}
			var shown []string
			for lines := json.NewDecoder(strings.NewReader(stdout)); lines.More(); {
				var message struct {
					Token string `json:"resumeToken"`
				}
				if err := lines.Decode(&message); err != nil {
					t.Fatal(err)
				}
				shown = append(shown, message.Token)
			}
			if diff := cmp.Diff(test.tokens, shown); diff != "" {
				t.Errorf("shown: %s", diff)
			}
			f.watched.mu.Lock()
			defer f.watched.mu.Unlock()
			if diff := cmp.Diff(test.asked, f.watched.asked); diff != "" {
				t.Errorf("asked for: %s", diff)
			}
		})
	}
}
