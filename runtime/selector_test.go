package runtime_test

import (
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

func FuzzSelector(f *testing.F) {
	for _, text := range []string{"", " ", "a", "!a", "a=b", "a==b", "a!=b", "a=b,c!=d,e,!f", ",", "a,,b", "=", "!", "!=", "a b=c", "ä=ö", "a=,b", "!!a"} {
		f.Add(text, "a", "b")
	}
	f.Fuzz(func(t *testing.T, text, key, value string) {
		selector, err := runtime.ParseSelector(text, "label_selector")
		if err != nil {
			if p := problem.Of(err); p.Reason != problem.FieldInvalid || p.Field != "label_selector" || p.Hint == "" {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		if len(selector) > strings.Count(text, ",")+1 || len(selector) == 0 && strings.TrimSpace(text) != "" {
			t.Errorf("%q: %d conditions", text, len(selector))
		}
		labels := map[string]string{key: value}
		all := true
		for _, requirement := range selector {
			if requirement.Key == "" || strings.ContainsAny(requirement.Key, " !=,") {
				t.Errorf("%q: condition on label %q", text, requirement.Key)
			}
			all = all && (runtime.Selector{requirement}).Matches(labels)
		}
		if selector.Matches(labels) != all {
			t.Errorf("%q selects %v otherwise than its conditions do", text, labels)
		}
	})
}
