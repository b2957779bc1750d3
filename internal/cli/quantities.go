package cli

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

var (
	errNegative = errors.New("it is less than 0")
	errDays     = errors.New("its days are not a whole number that hours may follow")
)

// span is a flag that holds a time span from 0 on.
type span time.Duration

// String implements pflag.Value.
func (s *span) String() string {
	if *s == 0 {
		return "0"
	}
	return time.Duration(*s).String()
}

// Set implements pflag.Value.
func (s *span) Set(text string) error {
	value, err := time.ParseDuration(text)
	if err == nil && value < 0 {
		err = errNegative
	}
	if err != nil {
		return err
	}
	*s = span(value)
	return nil
}

// Type implements pflag.Value.
func (*span) Type() string { return "duration" }

// count is a flag that holds a number from 0 on.
type count[T int | int32] struct{ into *T }

// String implements pflag.Value.
func (c count[T]) String() string {
	if c.into == nil { // pflag asks the zero value
		return "0"
	}
	return strconv.FormatInt(int64(*c.into), 10)
}

// Set implements pflag.Value.
func (c count[T]) Set(text string) error {
	value, err := strconv.ParseInt(text, 0, 32)
	if err == nil && value < 0 {
		err = errNegative
	}
	if err != nil {
		return err
	}
	*c.into = T(value)
	return nil
}

// Type implements pflag.Value.
func (count[T]) Type() string { return "int" }

// localTimes are the forms of a time that name no zone: that of here is meant.
var localTimes = []string{
	"2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02 15:04:05.999999999", "2006-01-02 15:04", time.DateOnly,
}

// parseMoment reads a point in time, with a zone (RFC 3339) or that of here.
func parseMoment(text string) (at time.Time, is bool) {
	if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return at, true
	}
	for _, form := range localTimes {
		if at, err := time.ParseInLocation(form, text, time.Local); err == nil { //nolint:gosmopolitan // people mean the time of where they are
			return at, true
		}
	}
	return time.Time{}, false
}

// instant reads a time, how long ago it was, or the seconds since 1970 that it
// is. A date is its midnight.
func instant(flag, text string) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil
	}
	if ago, err := time.ParseDuration(text); err == nil {
		if ago < 0 {
			return nil, usagef("write 10m for ten minutes ago", "--%s %q is in the future", flag, text)
		}
		return timestamppb.New(time.Now().Add(-ago)), nil
	}
	if at, is := parseMoment(text); is {
		return timestamppb.New(at), nil
	}
	if seconds, err := strconv.ParseFloat(text, 64); err == nil && seconds >= 0 && seconds < 1e11 {
		whole := int64(seconds)
		return &timestamppb.Timestamp{Seconds: whole, Nanos: int32((seconds - float64(whole)) * 1e9)}, nil
	}
	return nil, usagef("write it like 10m, 2026-01-02T15:04:05Z, 2026-01-02 15:04, 2026-01-02 or 1767366245",
		"--%s %q is neither a duration nor a time", flag, text)
}

// parseSpan reads a duration as Go writes them, with days in front: 3d or 1d12h.
// A day has 24 hours.
func parseSpan(text string) (time.Duration, error) {
	days, rest, found := strings.Cut(text, "d")
	if !found {
		return time.ParseDuration(text)
	}
	const most = 36500 // a century
	number, err := strconv.ParseUint(days, 10, 16)
	if err != nil || number > most {
		return 0, errDays
	}
	span := time.Duration(number) * 24 * time.Hour
	if rest == "" {
		return span, nil
	}
	more, err := time.ParseDuration(rest)
	if err != nil || more < 0 {
		return 0, errDays
	}
	return span + more, nil
}
