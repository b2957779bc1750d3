package runtime

import (
	"encoding/base64"
	"math"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/logfile"
)

// Tokens are opaque to everybody else, so this is a test from within: only
// what was made here is taken, and only for the environment it was made for.
func FuzzLogToken(f *testing.F) {
	const env = "01ENV"
	far := logfile.Position{Number: math.MaxUint64, Offset: math.MaxInt64, Sum: math.MaxUint64}
	for _, token := range []string{
		"", "nonsense", logToken(env, logfile.Position{}), logToken(env, far), logToken("01TWO", far), logToken("", far), logToken(env, far) + "A",
		logToken(env, logfile.Position{Offset: 1}), logToken(env, logfile.Position{Number: 1, Offset: -1}),
		base64.RawURLEncoding.EncodeToString([]byte("log1:01ENV:+1:1:1")), base64.RawURLEncoding.EncodeToString([]byte("log1:01ENV:1:1:00")),
		base64.RawURLEncoding.EncodeToString([]byte("log2:01ENV:1:1:1")), base64.RawURLEncoding.EncodeToString([]byte("log1:01ENV:1:1")),
		logToken(env, logfile.Position{Number: 1, Offset: 1, Late: 1, LateNumber: 2}), logToken(env, logfile.Position{Number: 1, Offset: 1, Late: 3, LateNumber: 2}),
		logToken(env, logfile.Position{Number: 1, Offset: 1, Open: 2}), base64.RawURLEncoding.EncodeToString([]byte("log1:01ENV:1:1:1:4")),
	} {
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		at, err := parseLogToken(env, token)
		if err == nil && (logToken(env, at) != token || at.Offset < 0 || at.Number == 0 && !at.IsZero()) {
			t.Errorf("%q is taken for %+v", token, at)
		}
		if p := problem.Of(err); err != nil && (p.Reason != problem.FieldInvalid || p.Field != "resume_after" || p.Hint == "") {
			t.Errorf("%q: %v", token, err)
		}
	})
}

func TestLogToken(t *testing.T) {
	for _, at := range []logfile.Position{{}, {Number: 1}, {Number: 7, Offset: 4096, Sum: 0xfedcba9876543210}, {Number: 7, Offset: 1, Sum: 1, Open: 3}, {Number: 7, Offset: 1, Sum: 1, Late: 2, LateNumber: 8, LateOffset: 4}, {Number: math.MaxUint64, Offset: math.MaxInt64, Sum: math.MaxUint64}} {
		token := logToken("01ENV", at)
		if got, err := parseLogToken("01ENV", token); err != nil || got != at {
			t.Errorf("%+v: %+v, %v", at, got, err)
		}
		if _, err := parseLogToken("01TWO", token); err == nil {
			t.Errorf("%+v is taken for another environment", at)
		}
	}
}
