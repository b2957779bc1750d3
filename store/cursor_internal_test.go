package store

import (
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// Cursors are opaque to everybody else, so this is a test from within: only
// what was made here is taken.
func FuzzCursor(f *testing.F) {
	for _, token := range []string{"", "o:1", cursor("o", 1), cursor("o", -1), cursor("e", 1), cursor("o", 1, 2), cursor("o"), cursor("o", 1) + "A", "bzoxIA"} {
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		for _, kind := range []string{"o", "e", "p"} {
			var one, two int64
			for _, position := range [][]*int64{{&one}, {&one, &two}} {
				err := parseCursor(token, kind, position...)
				values := []int64{one, two}[:len(position)]
				if err == nil && cursor(kind, values...) != token {
					t.Errorf("%q is taken for %s:%v", token, kind, values)
				}
				if p := problem.Of(err); err != nil && (p.Reason != problem.PageTokenInvalid || p.Field != "page_token" || p.Hint == "") {
					t.Errorf("%q: %v", token, err)
				}
			}
		}
	})
}
