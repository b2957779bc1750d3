package gpu

import (
	"fmt"
	"time"
)

// Vitals are what a GPU tells of its own state. What it does not tell is 0, or
// nil.
type Vitals struct {
	Temperature int `json:"temperature,omitempty"` // degrees Celsius
	// SlowdownAt and ShutdownAt are the degrees from which its hardware slows it
	// down, and switches it off.
	SlowdownAt int  `json:"slowdown_at,omitempty"`
	ShutdownAt int  `json:"shutdown_at,omitempty"`
	Throttled  bool `json:"throttled,omitempty"` // its hardware slows it down now, for its heat
	// UncorrectedErrors of memory are counted over the life of the board.
	UncorrectedErrors *uint64 `json:"uncorrected_errors,omitempty"`
	// RemapPending and RetirePending say that memory that failed is taken out
	// with the next reset: rows of it since Ampere, pages before.
	RemapPending  bool `json:"remap_pending,omitempty"`
	RetirePending bool `json:"retire_pending,omitempty"`
}

// Warnings are, for people, what is wrong with a GPU that works all the same.
func (v *Vitals) Warnings() []string {
	var found []string
	if v.hot() {
		found = append(found, "it is hot: "+v.heat())
	}
	if v.RemapPending {
		found = append(found, "rows of its memory failed and are replaced with its next reset")
	}
	if v.RetirePending {
		found = append(found, "pages of its memory failed and are taken out with its next reset")
	}
	return found
}

func (v *Vitals) hot() bool {
	return v.Throttled || v.SlowdownAt > 0 && v.Temperature >= v.SlowdownAt
}

// cool is not hot by a margin: between the two nothing changes.
func (v *Vitals) cool() bool {
	return !v.Throttled && (v.SlowdownAt == 0 || v.Temperature <= v.SlowdownAt-coolBy)
}

func (v *Vitals) heat() string {
	text := fmt.Sprintf("%d °C", v.Temperature)
	if v.SlowdownAt > 0 {
		text += fmt.Sprintf(", slowed down from %d °C on", v.SlowdownAt)
	}
	if v.Throttled {
		text += ", its hardware slows it down now"
	}
	return text
}

const (
	// HotFor is how long a GPU is hot before nobody new gets it: a fan takes a moment.
	HotFor = 2 * time.Minute
	// CoolFor is how long it is cool before somebody does.
	CoolFor = 5 * time.Minute

	coolBy = 5 // degrees below those from which it is hot
)

// Heat is what is remembered of how hot a GPU was. The zero value is of one that
// nobody has looked at.
type Heat struct {
	hot, cool time.Time // since when without a break; zero: it is not
	tooHot    time.Time // since when it is too hot to be given; zero: it is not
}

// Look takes a measurement in, and says what it makes of the GPU's health: it is
// unhealthy while it is too hot, which passes. hotFor and coolFor are HotFor and
// CoolFor but in tests. Where it would switch itself off it is too hot at once.
func (h *Heat) Look(v *Vitals, at time.Time, hotFor, coolFor time.Duration) Health {
	since := func(holds bool, before time.Time) time.Time {
		switch {
		case !holds:
			return time.Time{}
		case before.IsZero():
			return at
		}
		return before
	}
	h.hot, h.cool = since(v.hot(), h.hot), since(v.cool(), h.cool)
	switch {
	case h.tooHot.IsZero() && v.hot():
		if at.Sub(h.hot) >= hotFor || v.ShutdownAt > 0 && v.Temperature >= v.ShutdownAt {
			h.tooHot = at
		}
	case v.cool() && at.Sub(h.cool) >= coolFor:
		h.tooHot = time.Time{}
	}
	if h.tooHot.IsZero() {
		return Health{}
	}
	reason := "it is too hot: " + v.heat()
	if !v.hot() {
		reason = fmt.Sprintf("it was too hot, and is given again when it has been cool for a while: %s", v.heat())
	}
	return Health{Unhealthy: true, Passing: true, Reason: reason, Since: h.tooHot}
}
