package cli_test

import (
	"strings"
	"testing"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// A list that is not all there is says so, unless its reader has said how long
// it is to be.
func TestMoreThanTheLimit(t *testing.T) {
	f := newFake(t)
	f.ops = []*remotegpuv1.Operation{operation(succeeded, "", 0, 0)}
	const more = "there are more than these 50; --limit 0 lists all\n"
	for _, test := range []struct {
		args  string
		total int
		says  string
	}{
		{"op ls", 51, more},
		{"op ls -q", 51, more},
		{"op ls -o json", 51, more},
		{"op ls", 50, ""},
		{"op ls --limit 0", 51, ""},
		{"op ls --limit 5", 51, ""},
		{"op ls --page-size 5", 51, ""},
		{"gpu leases", 51, more},
		{"gpu leases --limit 0", 51, ""},
	} {
		f.total = test.total
		code, stdout, stderr := f.run(t, strings.Fields(test.args)...)
		if code != 0 || stderr != test.says {
			t.Errorf("%s of %d: code %d, says %q, want %q\n%s", test.args, test.total, code, stderr, test.says, stdout)
		}
	}
}

func TestLimitOfOnePage(t *testing.T) {
	f := newFake(t)
	for _, args := range []string{"env ls --limit 5 --page-size 2", "op ls --limit 0 --page-token x", "env ls -q --limit 5 --page-size 2"} {
		code, _, stderr := f.run(t, strings.Fields(args)...)
		if code != 2 || !strings.Contains(stderr, "--limit counts over all pages") || !strings.Contains(stderr, "Try: ") || f.last != nil {
			t.Errorf("%s: code %d, %s, sent %v", args, code, stderr, f.last)
		}
	}
	if code, _, stderr := f.run(t, "op", "ls", "-q", "-o", "json"); code != 2 || !strings.Contains(stderr, "--quiet and --output json") {
		t.Errorf("two forms: code %d, %s", code, stderr)
	}
}
