package runtime_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/logfile"
)

// A reader that keeps the token of each batch goes on behind it, with another
// manager too; a token that leads nowhere is refused.
func TestLogsResume(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	env, _ := d.create(full("desk"))
	other, _ := d.create(plain("other"))
	dir := filepath.Join(h.dir, "logs")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w := logfile.NewWriter(logfile.Config{Path: filepath.Join(dir, env.ID+".log"), MaxSize: logfile.MinMaxSize, MaxFiles: 100})
	const count = 10_000
	for i := range count {
		w.Write(logfile.Stdout, fmt.Appendf(nil, "line %d\n", i))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// The token comes before the first line, too.
	none, token, messages := int64(0), "", 0
	if err := d.Logs(t.Context(), runtime.LogRequest{Environment: "desk", Tail: &none}, func(_ []logfile.Line, at string) error {
		messages, token = messages+1, at
		return nil
	}); err != nil || messages != 1 || token == "" {
		t.Fatalf("%d messages, token %q: %v", messages, token, err)
	}
	end, broke := token, errors.New("the connection broke")
	token = ""
	next := 0
	for range 10 * count {
		sent := 0
		err := d.Logs(t.Context(), runtime.LogRequest{Environment: "desk", ResumeAfter: token}, func(lines []logfile.Line, at string) error {
			if sent++; sent == 3 {
				return broke
			}
			for _, line := range lines {
				if want := fmt.Sprintf("line %d", next); string(line.Data) != want {
					return fmt.Errorf("got %q, want %q", line.Data, want)
				}
				next++
			}
			token = at
			return nil
		})
		if err == nil {
			break
		}
		if !errors.Is(err, broke) {
			t.Fatal(err)
		}
	}
	if next != count || token != end {
		t.Errorf("%d lines, then %q, want %q", next, token, end)
	}

	for name, test := range map[string]struct {
		req   runtime.LogRequest
		field string
	}{
		"nonsense":                    {runtime.LogRequest{Environment: "desk", ResumeAfter: "nonsense"}, "resume_after"},
		"of another environment":      {runtime.LogRequest{Environment: other.ID, ResumeAfter: token}, "resume_after"},
		"of no time":                  {runtime.LogRequest{Environment: "desk", Since: time.Unix(2, 0), Until: time.Unix(1, 0)}, "since"},
		"with a beginning of its own": {runtime.LogRequest{Environment: "desk", ResumeAfter: token, Tail: &none}, "tail"},
	} {
		err := d.Logs(t.Context(), test.req, func([]logfile.Line, string) error { return nil })
		if p := problem.Of(err); err == nil || p.Reason != problem.FieldInvalid || p.Field != test.field || p.Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
