package runtime

import (
	"errors"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// labelKey is what labels can be called: all keys of Kubernetes, without its
// limits of length and of one slash.
var labelKey = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/:@-]*[A-Za-z0-9])?$`)

// checkLabels refuses labels that no selector could name. Those that are there
// already stay: they may be from before there was this rule.
func checkLabels(labels, there map[string]string) error {
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		value := labels[key]
		if old, found := there[key]; found && old == value {
			continue
		}
		field := "labels[" + strconv.Quote(key) + "]"
		if !labelKey.MatchString(key) {
			errs = append(errs, invalid(field, "use letters, digits and . _ - / : @, beginning and ending with a letter or digit",
				"%q is no key for a label", key))
		} else if !selectable(value) {
			errs = append(errs, invalid(field, "leave commas and control characters out, and spaces and = at its beginning and spaces at its end",
				"label %s cannot have the value %q: no selector could name it", key, value))
		}
	}
	return errors.Join(errs...)
}

// selectable says that ParseSelector reads a value as it is.
func selectable(value string) bool {
	return utf8.ValidString(value) && !strings.Contains(value, ",") && !strings.HasPrefix(value, "=") &&
		strings.TrimSpace(value) == value && !strings.ContainsFunc(value, unicode.IsControl)
}
