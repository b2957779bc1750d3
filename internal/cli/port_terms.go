package cli

import (
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// termsHelp is about the flags that port add and port update share.
const termsHelp = `--allow names who reaches it from outside: networks and addresses, such as
203.0.113.0/24,198.51.100.7 or 2001:db8::/32. The host and the environment
itself always do. Without it everybody does, or nobody from outside where the
node's [ports] closed_by_default is set; --allow 0.0.0.0/0,::/0 is everybody
there, too.
--expires withdraws it by itself: after a time, such as 90m, 48h or 3d, or at
one, such as ` + momentLike + `; never: not at all.`

// momentLike is a point in time as people write it.
const momentLike = "2026-11-26T14:30:00+01:00"

// expiryHint says how an end is written.
const expiryHint = "write a time such as 90m, 48h or 3d, one like " + momentLike + ", or never"

// termsFlags are the terms of a mapping, as written.
type termsFlags struct {
	waiting
	description string
	allow       []string
	expires     string
}

func (f *termsFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	f.waiting.register(flags)
	flags.StringVar(&f.description, "description", "", "free text")
	flags.StringArrayVar(&f.allow, "allow", nil, "networks and addresses that reach it, see above")
	flags.StringVar(&f.expires, "expires", "", "withdraw it after this time or at it, for example 2h or 3d")
}

// sources reads --allow; none: it was not given. An empty one is refused: a
// variable that is not set would open the port to everybody.
func (f *termsFlags) sources(changed func(string) bool) (sources []string, err error) {
	if !changed("allow") {
		return nil, nil
	}
	for _, texts := range f.allow {
		for text := range strings.SplitSeq(texts, ",") {
			if text = strings.TrimSpace(text); text == "" {
				return nil, usagef("name networks or addresses, 0.0.0.0/0,::/0 for everybody; port update --allow-default takes the list away",
					"--allow %q names nobody in one place", texts)
			}
			sources = append(sources, text)
		}
	}
	return sources, nil
}

// end reads --expires: after a time, or at one; neither: never. An empty one is
// refused as with sources.
func (f *termsFlags) end(changed func(string) bool) (after *durationpb.Duration, at *timestamppb.Timestamp, err error) {
	if !changed("expires") {
		return nil, nil, nil
	}
	span, moment, why := parseExpiry(f.expires)
	switch {
	case why != "":
		return nil, nil, usagef(expiryHint, "--expires %q is %s", f.expires, why)
	case span > 0:
		return durationpb.New(span), nil, nil
	case !moment.IsZero():
		return nil, timestamppb.New(moment), nil
	}
	return nil, nil, nil
}

// parseExpiry reads when a mapping ends: after a time (90m, 3d, 1d12h), at one
// (parseMoment), or "never", which is neither. why says what is wrong with it.
func parseExpiry(text string) (after time.Duration, at time.Time, why string) {
	const neither = "neither a time to come, such as 90m or 3d, nor one like " + momentLike + ", nor never"
	if text == "never" {
		return 0, time.Time{}, ""
	}
	if at, is := parseMoment(text); is {
		return 0, at, ""
	}
	if after, err := parseSpan(text); err == nil && after > 0 {
		return after, time.Time{}, ""
	}
	return 0, time.Time{}, neither
}
