package store

import (
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// millis is a time as it is kept: milliseconds UTC, 0 for the zero time.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// stored is t as it comes back from the database.
func stored(t time.Time) time.Time { return fromMillis(millis(t)) }

func toJSON(v any) (string, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("encode: %w", err)
	}
	return string(data), nil
}

func fromJSON(text string, v any) error {
	if err := json.Unmarshal([]byte(text), v); err != nil {
		return problem.New(problem.DatabaseFailed, "a row of the database cannot be read").WithCause(err)
	}
	return nil
}

// scanner is a *sql.Row or *sql.Rows.
type scanner interface{ Scan(dest ...any) error }

func ignoreNoRows(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	return err
}

// placeholders is "?,?,…" for n values.
func placeholders(n int) string { return strings.TrimSuffix(strings.Repeat("?,", n), ",") }

// cursor makes a page cursor of a list; kind keeps the cursor of one list from
// being used on another.
func cursor(kind string, position ...int64) string {
	var text strings.Builder
	text.WriteString(kind)
	for _, p := range position {
		fmt.Fprintf(&text, ":%d", p)
	}
	return base64.RawURLEncoding.EncodeToString([]byte(text.String()))
}

func parseCursor(after, kind string, position ...*int64) error {
	data, err := base64.RawURLEncoding.DecodeString(after)
	if err == nil {
		format := kind + strings.Repeat(":%d", len(position))
		targets := make([]any, len(position))
		for i, p := range position {
			targets[i] = p
		}
		_, err = fmt.Sscanf(string(data), format, targets...)
	}
	if err == nil {
		values := make([]int64, len(position))
		for i, p := range position {
			values[i] = *p
		}
		if cursor(kind, values...) != after {
			err = errors.New("it was not made here")
		}
	}
	if err != nil {
		return problem.New(problem.PageTokenInvalid, "the page token is not one of this list").
			WithField("page_token").WithHint("use next_page_token of the page before, or leave it empty").WithCause(err)
	}
	return nil
}
