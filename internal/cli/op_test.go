package cli_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// Programs wait for as long, and through as much, as people do.
func TestWatchOperationInJSON(t *testing.T) {
	at := func(step string) *remotegpuv1.Operation { return operation(running, step, 0, 0) }
	for _, test := range []struct {
		name, args string
		ops        []*remotegpuv1.Operation
		drop       int
		code       int
		steps      []string
		says       string
	}{
		{"done", "", []*remotegpuv1.Operation{operation(succeeded, "end", 0, 0)}, 0, 0, []string{"end"}, ""},
		{"fails", "", []*remotegpuv1.Operation{at("pull"), operation(failed, "end", 0, 0)}, 0, 8, []string{"pull", "end"}, "environment.create failed"},
		{
			"through a lost connection", "",
			[]*remotegpuv1.Operation{at("pull"), at("unpack"), operation(succeeded, "end", 0, 0)},
			1, 0,
			[]string{"pull", "unpack", "end"},
			"connection lost, trying again",
		},
		{"takes too long", "--timeout 300ms", []*remotegpuv1.Operation{at("pull")}, 0, 8, []string{"pull"}, "still not done; operation 01OP goes on"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFake(t)
			f.ops, f.drop = test.ops, test.drop
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // one that waits for ever has failed
			defer cancel()
			code, stdout, stderr := f.runWith(ctx, "", map[string]string{}, append([]string{"-o", "json", "op", "watch", "01OP"}, strings.Fields(test.args)...)...)
			if code != test.code || !strings.Contains(stderr, test.says) || test.says == "" && stderr != "" {
				t.Errorf("code %d, want %d: %s", code, test.code, stderr)
			}
			var steps []string
			for line := range strings.Lines(stdout) {
				var op struct{ Progress struct{ Step string } }
				if err := json.Unmarshal([]byte(line), &op); err != nil {
					t.Fatal(err)
				}
				steps = append(steps, op.Progress.Step)
			}
			if diff := cmp.Diff(test.steps, steps); diff != "" {
				t.Error(diff)
			}
		})
	}
	if code, _, stderr := newFake(t).run(t, "op", "watch", "01OP", "--timeout", "-1s"); code != 2 {
		t.Errorf("a negative timeout: code %d, %s", code, stderr)
	}
}
