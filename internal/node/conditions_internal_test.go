package node

import (
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/network/gateway"
	"github.com/remotegpu/remotegpu/runtime"
)

// People are told that a desktop rests only when nothing is about to change
// that.
func TestConditionsOfDesktops(t *testing.T) {
	spec := runtime.Spec{Desktop: &runtime.Desktop{}}
	for name, test := range map[string]struct {
		env  runtime.Environment
		want gateway.Condition
	}{
		"creating":           {runtime.Environment{State: runtime.Creating, Spec: spec}, gateway.Present},
		"running":            {runtime.Environment{State: runtime.Running, Spec: spec}, gateway.Present},
		"stopped":            {runtime.Environment{State: runtime.Stopped, Spec: spec}, gateway.Stopped},
		"being started":      {runtime.Environment{State: runtime.Stopped, Spec: spec, Operation: "op"}, gateway.Present},
		"restarted soon":     {runtime.Environment{State: runtime.Failed, Spec: spec, RestartAt: time.Now()}, gateway.Present},
		"paused":             {runtime.Environment{State: runtime.Stopped, Paused: true, Spec: spec}, gateway.Paused},
		"being resumed":      {runtime.Environment{State: runtime.Stopped, Paused: true, Spec: spec, Operation: "op"}, gateway.Paused},
		"failed":             {runtime.Environment{State: runtime.Failed, Spec: spec}, gateway.Failed},
		"deleted":            {runtime.Environment{State: runtime.Deleted, Spec: spec}, gateway.Gone},
		"without desktop":    {runtime.Environment{State: runtime.Running}, gateway.Gone},
		"with one until now": {runtime.Environment{State: runtime.Running, Applied: &spec}, gateway.Present},
	} {
		if got := condition(&test.env); got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}
}
