package runtime

import (
	"testing"
	"time"
)

// Who is told of a deleted environment is not told of an older form of it after
// that, and what is kept for that goes in time.
func TestOldFormsAreNoNews(t *testing.T) {
	m := &Manager{followed: make(map[string]int64)}
	now := time.Now()
	for _, test := range []struct {
		what     string
		id       string
		revision int64
		state    State
		after    time.Duration
		news     bool
	}{
		{"the first", "a", 10, Running, 0, true},
		{"the same once more", "a", 10, Running, 0, true},
		{"an older one", "a", 9, Running, 0, false},
		{"its end", "a", 11, Deleted, time.Second, true},
		{"an older one after its end", "a", 10, Running, oldForms, false},
		{"another one's end", "b", 3, Deleted, oldForms, true},
		{"a third", "c", 1, Running, oldForms + 2*time.Second, true},
	} {
		if news := m.isNews(&Environment{ID: test.id, Revision: test.revision, State: test.state}, now.Add(test.after)); news != test.news {
			t.Errorf("%s: %t", test.what, news)
		}
	}
	if _, kept := m.followed["a"]; kept || len(m.departed) != 1 {
		t.Errorf("kept: %v, %v", m.followed, m.departed)
	}
}
