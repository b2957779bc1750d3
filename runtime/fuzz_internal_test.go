package runtime

import (
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// Resume tokens are made and read by what only the Manager sees, so this is a
// test from within.
func FuzzResumeToken(f *testing.F) {
	r := recent{life: "life"}
	for i := range 5 {
		r.add(&Environment{ID: "env", Revision: int64(i)})
	}
	for _, token := range []string{"", "life.1", r.token(0), r.token(3), r.token(5), r.token(6), "bGlmZS4tMQ", "\x00", "bGlmZS4xLjI"} {
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		missed, _, err := r.after(token)
		if err != nil {
			if p := problem.Of(err); p.Reason != problem.FieldInvalid && p.Reason != problem.ResumeTokenTooOld || p.Field != "resume_after" || p.Hint == "" {
				t.Errorf("%q: %v", token, err)
			}
			return
		}
		if seq := uint64(5 - len(missed)); len(missed) > 5 || r.token(seq) != token {
			t.Errorf("%q is taken for a token, and %d changes came after it", token, len(missed))
		}
	})
}
