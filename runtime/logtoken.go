package runtime

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/logfile"
)

// logTokenKind begins the tokens of logs, and counts their forms.
const logTokenKind = "log1"

// logToken is a position in the log of an environment as callers keep it.
func logToken(env string, at logfile.Position) string {
	text := fmt.Sprintf("%s:%s:%d:%d:%x", logTokenKind, env, at.Number, at.Offset, at.Sum)
	if at.Open != 0 || at.Late != 0 {
		text = fmt.Sprintf("%s:%d", text, at.Open)
	}
	if at.Late != 0 {
		text = fmt.Sprintf("%s:%d:%d:%d", text, at.Late, at.LateNumber, at.LateOffset)
	}
	return base64.RawURLEncoding.EncodeToString([]byte(text))
}

// parseLogToken returns the position in a token of an environment's log.
// FIELD_INVALID when it was not made by logToken, or for another environment.
func parseLogToken(env, token string) (logfile.Position, error) {
	owner, at, err := splitLogToken(token)
	if err != nil || logToken(owner, at) != token {
		return logfile.Position{}, problem.New(problem.FieldInvalid, "the resume token is not one of a log").WithField("resume_after").
			WithHint("use the last resume_token that GetLogs has sent, or leave it empty").WithCause(err)
	}
	if owner != env {
		return logfile.Position{}, problem.New(problem.FieldInvalid, "the resume token is of the log of another environment").WithField("resume_after").
			WithHint("leave it empty to read this environment's log from its beginning")
	}
	return at, nil
}

func splitLogToken(token string) (env string, at logfile.Position, err error) {
	text, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return "", at, err
	}
	fields := strings.Split(string(text), ":")
	if len(fields) != 5 && len(fields) != 6 && len(fields) != 9 || fields[0] != logTokenKind {
		return "", at, errors.New("it has another form")
	}
	number, numberErr := strconv.ParseUint(fields[2], 10, 64)
	offset, offsetErr := strconv.ParseInt(fields[3], 10, 64)
	sum, sumErr := strconv.ParseUint(fields[4], 16, 64)
	at = logfile.Position{Number: number, Offset: offset, Sum: sum}
	var openErr, lateErr error
	if len(fields) == 9 {
		at, lateErr = withLate(at, fields[6:])
	}
	if len(fields) >= 6 {
		var open uint64
		open, openErr = strconv.ParseUint(fields[5], 10, 2) // a bit for each stream
		at.Open = uint8(open)
	}
	if err := errors.Join(numberErr, offsetErr, sumErr, openErr, lateErr); err != nil {
		return "", at, err
	}
	if offset < 0 || number == 0 && !at.IsZero() {
		return "", at, errors.New("there is no such place")
	}
	return fields[1], at, nil
}

// withLate reads the stream that begins further ahead, and where.
func withLate(at logfile.Position, fields []string) (logfile.Position, error) {
	stream, streamErr := strconv.ParseUint(fields[0], 10, 2)
	number, numberErr := strconv.ParseUint(fields[1], 10, 64)
	offset, offsetErr := strconv.ParseInt(fields[2], 10, 64)
	if err := errors.Join(streamErr, numberErr, offsetErr); err != nil {
		return at, err
	}
	at.Late, at.LateNumber, at.LateOffset = logfile.Stream(stream), number, offset
	if at.Late != logfile.Stdout && at.Late != logfile.Stderr || number < at.Number || offset < 0 {
		return at, errors.New("there is no such place to begin at")
	}
	return at, nil
}
