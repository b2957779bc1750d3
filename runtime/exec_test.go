package runtime_test

import (
	"io"
	"slices"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

// Commands with streams and without are counted together, so nobody fills the
// node by the one way while the other is shut.
func TestCommandsAtOnceAreLimited(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(full("desk"))
	d.create(full("other"))
	run := func(name string) error {
		_, err := d.RunCommand(t.Context(), runtime.CommandRequest{Environment: name, Argv: []string{"testprog", "echo", "x"}})
		return err
	}
	exec := func(name string) error {
		_, err := d.Exec(t.Context(), runtime.ExecRequest{Environment: name, Argv: []string{"testprog", "echo", "x"}}, runtime.Streams{Stdout: io.Discard, Stderr: io.Discard})
		return err
	}
	reached, release := h.hang("Engine.Run", runtime.ExecLimit)
	defer release()
	results := make(chan error, runtime.ExecLimit)
	for range runtime.ExecLimit {
		go func() { results <- run("desk") }()
		<-reached
	}
	for what, call := range map[string]func(string) error{"run": run, "exec": exec} {
		err := call("desk")
		if p := problem.Of(err); p == nil || p.Reason != problem.ExecLimit || p.Field != "environment" || p.Hint == "" {
			t.Errorf("%s beyond the limit: %v", what, err)
		}
		if err := call("other"); err != nil {
			t.Errorf("%s in another environment: %v", what, err)
		}
	}
	release()
	for range runtime.ExecLimit {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	for what, call := range map[string]func(string) error{"run": run, "exec": exec} {
		if err := call("desk"); err != nil {
			t.Errorf("%s when the others have ended: %v", what, err)
		}
	}
}

// The kernel would take what holds a NUL byte for less than was asked for, and
// containerd's refusal names no field.
func TestCommandsThatCannotBeSaid(t *testing.T) {
	h := newHost(t)
	d := start(t, h)
	d.create(full("desk"))
	request := runtime.ExecRequest{
		Environment: "desk", Argv: []string{"testprog", "echo", "a\x00b"}, Workdir: "/\x00",
		Env: map[string]string{"A": "fine", "B": "a\x00", "1": "x"},
	}
	_, run := d.RunCommand(t.Context(), runtime.CommandRequest{
		Environment: request.Environment, Argv: request.Argv, Workdir: request.Workdir, Env: request.Env,
	})
	_, exec := d.Exec(t.Context(), request, runtime.Streams{Stdout: io.Discard, Stderr: io.Discard})
	for what, err := range map[string]error{"run": run, "exec": exec} {
		var fields []string
		for _, p := range problem.All(err) {
			if p.Reason != problem.FieldInvalid || p.Hint == "" {
				t.Errorf("%s: %+v", what, p)
			}
			fields = append(fields, p.Field)
		}
		if want := []string{"argv[2]", "workdir", `env["1"]`, `env["B"]`}; !slices.Equal(fields, want) {
			t.Errorf("%s: at fault are %q, not %q", what, fields, want)
		}
	}
}
