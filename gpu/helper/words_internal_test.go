package helper

import (
	"strings"
	"testing"
)

// White-box: what is kept of a process's words shows only in errors.
func TestWords(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, said, want string }{
		{"nothing", "", ""},
		{"last lines", "one\ntwo\n\nthree\nfour\n", "two; three; four"},
		{"no end", "one\ntwo", "one; two"},
		{"linker", "x\n/proc/self/exe: symbol lookup error: /proc/self/exe: undefined symbol: nvmlX\n", "/proc/self/exe: symbol lookup error: /proc/self/exe: undefined symbol: nvmlX"},
		{"panic", "panic: oh\n\ngoroutine 1 [running]:\nmain.main()\n\t/x.go:1\nexit status 2\n", "panic: oh"},
		{"fault", "SIGSEGV: segmentation violation\nPC=0x1\n" + strings.Repeat("goroutine\n", 10000), "SIGSEGV: segmentation violation"},
		{"long", strings.Repeat("é", 10000), strings.Repeat("é", 250)},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for _, size := range []int{1, 7, 100000} {
				var w words
				for rest := test.said; rest != ""; {
					part := rest[:min(size, len(rest))]
					rest = rest[len(part):]
					if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
						t.Fatalf("wrote %d of %d: %v", n, len(part), err)
					}
				}
				if got := w.last(); test.name != "long" && got != test.want || len(got) > 4*wordsWidth {
					t.Errorf("in parts of %d: %.100q, want %.100q", size, got, test.want)
				}
			}
		})
	}
}
