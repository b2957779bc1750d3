package runtime

import (
	"fmt"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
)

// What a program brings about by the thousand is followed a few times a minute,
// and none of it is lost count of.
func TestLikeEventsAreHeldBack(t *testing.T) {
	var gate eventGate
	now := time.Unix(1000, 0)
	send := func(count int, event gpu.Event) (followed, held int) {
		for range count {
			follow, more := gate.pass(&event, now)
			if held += more; follow {
				followed++
			}
		}
		return followed, held
	}
	storm := gpu.Event{UUID: "a", XID: 31}
	if followed, held := send(4000, storm); followed != eventBurst || held != 0 {
		t.Errorf("followed %d, told of %d", followed, held)
	}
	for _, other := range []gpu.Event{{UUID: "b", XID: 31}, {UUID: "a", XID: 79, Fatal: true}, {UUID: "a", MIG: "m", XID: 31}} {
		if followed, _ := send(1, other); followed != 1 {
			t.Errorf("%+v is held back", other)
		}
	}
	if over := gate.over(now.Add(eventWindow - 1)); len(over) != 0 {
		t.Errorf("told too early: %+v", over)
	}
	now = now.Add(eventWindow)
	if followed, held := send(10, storm); followed != eventBurst || held != 4000-eventBurst {
		t.Errorf("followed %d, told of %d", followed, held)
	}
	gate.forget("a")
	if followed, held := send(7, storm); followed != eventBurst || held != 0 {
		t.Errorf("followed %d, told of %d", followed, held)
	}
	over := gate.over(now.Add(eventWindow))
	if len(over) != 1 || over[0].xid != 31 || over[0].gpu != "a" || over[0].count != 2 || len(gate.flows) != 0 {
		t.Errorf("told %+v, and %d are remembered", over, len(gate.flows))
	}
	for i := range 2 * eventKinds {
		send(1, gpu.Event{UUID: fmt.Sprint(i)})
	}
	if len(gate.flows) > eventKinds {
		t.Errorf("%d are remembered", len(gate.flows))
	}
}

func TestErrorsAreCounted(t *testing.T) {
	var counts errorCounts
	for xid := range 2 * errorKinds {
		counts.count(&gpu.Event{UUID: "a", XID: xid})
	}
	counts.count(&gpu.Event{UUID: "a", XID: 31})
	got, sum := counts.of("a"), int64(0)
	for _, count := range got.XIDs {
		sum += count
	}
	if got.Last != 31 || got.XIDs[31] != 2 || sum != 2*errorKinds || len(got.XIDs) != errorKinds+1 {
		t.Errorf("got %+v, %d in all", got, sum)
	}
	if none := counts.of("b"); none.Last != 0 || len(none.XIDs) != 0 {
		t.Errorf("got %+v", none)
	}
}
