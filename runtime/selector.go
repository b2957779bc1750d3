package runtime

import (
	"strings"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// Selector is a conjunction of label requirements.
type Selector []Requirement

// Requirement is one condition on a label.
type Requirement struct {
	Key    string
	Value  string
	Exists bool // only whether the key is there matters
	Negate bool
}

// ParseSelector parses comma-separated "key=value", "key!=value", "key" and
// "!key"; "key==value" is "key=value". FIELD_INVALID names field.
func ParseSelector(text, field string) (Selector, error) {
	var selector Selector
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			if strings.TrimSpace(text) == "" {
				return nil, nil
			}
			return nil, badSelector(text, field)
		}
		var r Requirement
		if key, value, found := strings.Cut(part, "="); found {
			value, twice := strings.CutPrefix(value, "=")
			key, negate := strings.CutSuffix(key, "!")
			r = Requirement{Key: strings.TrimSpace(key), Value: strings.TrimSpace(value), Negate: negate}
			if twice && (r.Value == "" || negate) {
				return nil, badSelector(text, field)
			}
		} else if key, found := strings.CutPrefix(part, "!"); found {
			r = Requirement{Key: strings.TrimSpace(key), Exists: true, Negate: true}
		} else {
			r = Requirement{Key: part, Exists: true}
		}
		if r.Key == "" || strings.ContainsAny(r.Key, " !=") {
			return nil, badSelector(text, field)
		}
		selector = append(selector, r)
	}
	return selector, nil
}

func badSelector(text, field string) error {
	return problem.New(problem.FieldInvalid, "label selector %q cannot be read", text).WithField(field).
		WithHint(`write conditions like "team=vision,tier!=test,gpu,!old"; "team=" is one with an empty value`)
}

// Matches says whether labels meet every requirement.
func (s Selector) Matches(labels map[string]string) bool {
	for _, r := range s {
		value, exists := labels[r.Key]
		holds := exists && (r.Exists || value == r.Value)
		if holds == r.Negate {
			return false
		}
	}
	return true
}
