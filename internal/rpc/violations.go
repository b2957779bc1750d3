package rpc

import (
	"errors"
	"fmt"
	"strings"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// fieldProblems says of each field that broke a rule of the contract what is
// wrong with it, in people's words.
func fieldProblems(broken *protovalidate.ValidationError) error {
	var errs []error
	for _, violation := range broken.Violations {
		path := protovalidate.FieldPathString(violation.Proto.GetField())
		message, hint := ruleWords(path, violation)
		errs = append(errs, problem.New(problem.FieldInvalid, "%s", message).WithField(path).WithHint("%s", hint))
	}
	return errors.Join(errs...)
}

// words are what is said of a broken rule: of a field, its value and the rule's.
type words func(field, value, rule string) (message, hint string)

// rules are the words for the rules of protovalidate, by the last part of their
// ids (string.min_len). What is not here says what it says of itself.
var rules = map[string]words{
	"required":  missing,
	"min_len":   atLeast("characters"),
	"max_len":   atMost("characters"),
	"min_bytes": atLeast("bytes"),
	"max_bytes": atMost("bytes"),
	"min_items": atLeast("values"),
	"max_items": atMost("values"),
	"min_pairs": atLeast("pairs"),
	"max_pairs": atMost("pairs"),
	"prefix": func(field, value, rule string) (string, string) {
		if rule == "/" {
			return fmt.Sprintf("%s %s is no absolute path", field, value), "write the whole path: it begins with /"
		}
		return fmt.Sprintf("%s %s does not begin with %q", field, value, rule), fmt.Sprintf("let it begin with %q", rule)
	},
	"unique":       func(field, _, _ string) (string, string) { return field + " names something twice", "name each once" },
	"defined_only": noEnum,
	"not_in":       notNow,
	"in":           noEnum,
}

func missing(field, _, _ string) (message, hint string) {
	return field + " is missing", "say what it is to be"
}

func noEnum(field, value, _ string) (message, hint string) {
	if value == "0" {
		return missing(field, value, "")
	}
	return fmt.Sprintf("%s %s is not known here", field, value), "use one of the values that the API documents; a newer client may know more than the node"
}

// notNow is said of values that the API has, and not for this.
func notNow(field, value, _ string) (message, hint string) {
	if value == "0" {
		return missing(field, value, "")
	}
	return fmt.Sprintf("%s %s is not for requests", field, value), "the definition of the API says which values are (api/remotegpu/v1)"
}

func atLeast(what string) words {
	return func(field, value, rule string) (string, string) {
		if rule == "1" || value == `""` {
			return field + " is empty", "say what it is to be"
		}
		return fmt.Sprintf("%s is too short: it has less than %s %s", field, rule, what), fmt.Sprintf("give it %s %s at least", rule, what)
	}
}

func atMost(what string) words {
	return func(field, _, rule string) (string, string) {
		return fmt.Sprintf("%s is too long: it has more than %s %s", field, rule, what), fmt.Sprintf("give it %s %s at most", rule, what)
	}
}

// bounds are the words of protovalidate for what a number or time may be, and
// ours.
var bounds = strings.NewReplacer("greater than or equal to", "at least", "less than or equal to", "at most", "greater than", "more than")

func ruleWords(path string, violation *protovalidate.Violation) (message, hint string) {
	field := path[strings.LastIndexByte(path, '.')+1:]
	id, said := violation.Proto.GetRuleId(), violation.Proto.GetMessage()
	value := valueText(field, violation.FieldDescriptor, violation.FieldValue)
	last := id[strings.LastIndexByte(id, '.')+1:]
	if write, ok := rules[last]; ok {
		return write(field, value, fmt.Sprint(violation.RuleValue))
	}
	if rest, ok := strings.CutPrefix(bounds.Replace(said), "must be "); ok {
		if value != "" {
			return fmt.Sprintf("%s is %s; it must be %s", field, value, rest), fmt.Sprintf("give %s a value that is %s", field, rest)
		}
		return fmt.Sprintf("%s must be %s", field, rest), fmt.Sprintf("give %s a value that is %s", field, rest)
	}
	if field == "" {
		return said, "the definition of the API says what belongs there (api/remotegpu/v1)"
	}
	return field + ": " + said, "the definition of the API says what belongs there (api/remotegpu/v1)"
}

// longestValue is how much of a value a message quotes, in bytes.
const longestValue = 100

// valueText is a value as a message may show it: "" when it is secret, or nothing
// that a line can hold.
func valueText(field string, descriptor protoreflect.FieldDescriptor, value protoreflect.Value) string {
	if !value.IsValid() || descriptor == nil || strings.Contains(field, "password") {
		return ""
	}
	switch v := value.Interface().(type) {
	case string:
		return fmt.Sprintf("%q", v[:min(len(v), longestValue)])
	case protoreflect.EnumNumber:
		return fmt.Sprint(int32(v))
	case int32, int64, uint32, uint64, float32, float64:
		return fmt.Sprint(v)
	case protoreflect.Message:
		return durationText(v)
	}
	return ""
}

// durationText is a google.protobuf.Duration as people write it, "" for other
// messages.
func durationText(m protoreflect.Message) string {
	if m.Descriptor().FullName() != "google.protobuf.Duration" {
		return ""
	}
	fields := m.Descriptor().Fields()
	seconds, nanos := m.Get(fields.ByName("seconds")).Int(), m.Get(fields.ByName("nanos")).Int()
	text := fmt.Sprintf("%d.%09d", max(seconds, -seconds), max(nanos, -nanos))
	if seconds < 0 || nanos < 0 {
		text = "-" + text
	}
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".") + "s"
}
