package port_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/network/port/porttest"
)

// clock is a time that a test sets.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func newClock() *clock { return &clock{time.Now().UTC().Truncate(time.Millisecond)} }

// restingPool is a pool with three ports for SSH and a quarantine of a minute.
func restingPool(t *testing.T, s port.Store, c *clock) *port.Pool {
	t.Helper()
	pool, err := port.New(t.Context(), port.Config{HostID: porttest.Host, Store: s, Probe: allFree, Now: c.Now, Quarantine: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.SetRange(t.Context(), port.SSH, 30000, 30002, port.AnyRevision); err != nil {
		t.Fatal(err)
	}
	return pool
}

func TestReleasedPortIsNotGivenOutBeforeItHasRested(t *testing.T) {
	t.Parallel()
	s, c := open(t), newClock()
	pool := restingPool(t, s, c)
	ssh := port.Request{Service: port.SSH}
	if got := must(t, pool, s, "a", ssh, ssh, ssh); !slices.Equal(got, []uint16{30000, 30001, 30002}) {
		t.Fatalf("got %v", got)
	}
	if _, err := pool.Release(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	refused := func(pool *port.Pool, when string) {
		t.Helper()
		_, err := allocate(t, pool, s, "b", ssh)
		want(t, err, problem.PortPoolExhausted, "spec.ports[0]")
		if p := problem.Of(err); p != nil && !strings.Contains(p.Hint, "are 3 resting") {
			t.Errorf("%s: the hint %q does not say that they rest", when, p.Hint)
		}
	}
	c.now = c.now.Add(59 * time.Second)
	refused(pool, "before it is over")
	refused(restingPool(t, s, c), "after a restart")
	usage, err := pool.Usage(t.Context())
	if err != nil || usage[0].Resting != 3 || usage[0].Free != 0 || usage[0].InUse != 0 {
		t.Errorf("usage %+v, error %v", usage[0], err)
	}
	c.now = c.now.Add(time.Second)
	for _, pool := range []*port.Pool{pool, restingPool(t, s, c)} {
		if usage, err := pool.Usage(t.Context()); err != nil || usage[0].Resting != 0 || usage[0].Free != 3 {
			t.Errorf("usage after the rest %+v, error %v", usage[0], err)
		}
	}
	must(t, pool, s, "b", ssh, ssh, ssh)
}

// What the store says was released rests, too, before the pool is told: another
// process may have released it, or this one's notice is still on its way.
func TestPortReleasedInTheStoreRests(t *testing.T) {
	t.Parallel()
	s, c := open(t), newClock()
	pool := restingPool(t, s, c)
	ssh := port.Request{Service: port.SSH}
	must(t, pool, s, "a", ssh, ssh, ssh)
	released, err := s.ReleasePortMappings(t.Context(), porttest.Host, "a", c.now)
	if err != nil || len(released) != 3 {
		t.Fatalf("released %v, error %v", released, err)
	}
	refused := func(when string) {
		t.Helper()
		if _, err := allocate(t, pool, s, "b", ssh); problem.Of(err) == nil || !strings.Contains(problem.Of(err).Hint, "are 3 resting") {
			t.Errorf("%s: error %v, want one that says that they rest", when, err)
		}
	}
	refused("before the pool is told")
	pool.Released(released)
	c.now = c.now.Add(59 * time.Second)
	refused("before it is over")
	c.now = c.now.Add(time.Second)
	must(t, pool, s, "b", ssh, ssh, ssh)
	pool.Released(released) // a second time
	if usage, err := pool.Usage(t.Context()); err != nil || usage[0].Resting != 0 || usage[0].InUse != 3 {
		t.Errorf("usage %+v, error %v", usage[0], err)
	}
}

// Who comes by the number of a port that rests means whoever had it: the
// project that did may have it back, no other may.
func TestRestingPortGoesBackToItsProject(t *testing.T) {
	t.Parallel()
	s, c := open(t), newClock()
	pool := restingPool(t, s, c)
	certain := port.Request{Service: port.SSH, External: 30001}
	must(t, pool, s, "a", certain)
	if _, err := pool.Release(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	for _, pool := range []*port.Pool{pool, restingPool(t, s, c)} {
		_, err := pool.Allocate(t.Context(), port.Owner{EnvID: "b", Project: "other"}, []port.Request{certain}, s.InsertPortMappings)
		want(t, err, problem.PortTaken, "spec.ports[0].external_port")
		if p := problem.Of(err); p != nil && !strings.Contains(p.Hint, "1m0s") {
			t.Errorf("the hint %q does not say for how long", p.Hint)
		}
	}
	must(t, pool, s, "c", certain)
	if _, err := pool.Release(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	// It rests from its last release on.
	c.now = c.now.Add(59 * time.Second)
	if got := must(t, pool, s, "d", port.Request{Service: port.SSH}, port.Request{Service: port.SSH}); slices.Contains(got, 30001) {
		t.Errorf("got %v, of which one rests", got)
	}
	// What another one's failed allocation had is free at once.
	c.now = c.now.Add(time.Minute)
	must(t, pool, s, "e", certain)
}

// A port that rests goes on resting when it was asked for and nothing came of
// it: another port of the same request was taken, or the store refused.
func TestFailedRequestEndsNoRest(t *testing.T) {
	t.Parallel()
	s, c := open(t), newClock()
	pool := restingPool(t, s, c)
	must(t, pool, s, "a", port.Request{Service: port.SSH, External: 30000})
	must(t, pool, s, "b", port.Request{Service: port.SSH, External: 30001})
	if _, err := pool.Release(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	resting := port.Request{Service: port.SSH, External: 30000}
	refused := errors.New("refused")
	for name, try := range map[string]func() error{
		"another port is taken": func() error {
			_, err := allocate(t, pool, s, "c", resting, port.Request{Service: port.SSH, External: 30001})
			return err
		},
		"the store refuses": func() error {
			_, err := pool.Allocate(t.Context(), port.Owner{EnvID: "c", Project: "default"}, []port.Request{resting},
				func(context.Context, []port.Mapping) error { return refused })
			return err
		},
	} {
		if err := try(); err == nil {
			t.Fatalf("%s, and nothing fails", name)
		}
		_, err := pool.Allocate(t.Context(), port.Owner{EnvID: "d", Project: "other"}, []port.Request{resting}, s.InsertPortMappings)
		want(t, err, problem.PortTaken, "spec.ports[0].external_port")
		if usage, err := pool.Usage(t.Context()); err != nil || usage[0].Resting != 1 {
			t.Errorf("%s: usage %+v, error %v", name, usage[0], err)
		}
	}
	must(t, pool, s, "e", resting)
}

// What is held outside of every range, after a change, is kept from outgoing
// connections as the ranges are.
func TestHeldPortsOutsideOfRangesAreReservable(t *testing.T) {
	t.Parallel()
	s := open(t)
	pool := newPool(t, s, allFree)
	must(t, pool, s, "a", port.Request{Service: port.RDP, External: 34000})
	if _, err := pool.SetRange(t.Context(), port.RDP, 40000, 40100, port.AnyRevision); err != nil {
		t.Fatal(err)
	}
	outside := port.Range{First: 34000, Last: 34000}
	if got := pool.Reservable(); !slices.Contains(got, outside) || len(got) != len(port.Services())+1 {
		t.Errorf("reservable are %v", got)
	}
	if _, err := pool.Release(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if got := pool.Reservable(); slices.Contains(got, outside) {
		t.Errorf("after the release reservable are %v", got)
	}
}

func TestDeniedAndRefusedPortsAreNotGivenOut(t *testing.T) {
	t.Parallel()
	s := open(t)
	pool, err := port.New(t.Context(), port.Config{
		HostID: porttest.Host, Store: s, Probe: allFree, Quarantine: -1,
		Deny: []port.Span{{Protocol: port.TCP, First: 22000, Last: 22001}, {Protocol: port.TCP, First: 19999, Last: 22000}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := must(t, pool, s, "a", port.Request{Service: port.SSH}, port.Request{Service: port.SSH, Protocol: port.UDP}); !slices.Equal(got, []uint16{22002, 22000}) {
		t.Errorf("got %v, want the first that is not denied, which goes by protocol", got)
	}
	for _, request := range []port.Request{
		{Service: port.SSH, External: 22001}, {Service: port.NoVNC, External: 6566},
	} {
		_, err := allocate(t, pool, s, "b", request)
		want(t, err, problem.PortDenied, "spec.ports[0].external_port")
	}
	must(t, pool, s, "b", port.Request{Service: port.Custom, Internal: 80, External: 10080}) // who asks knows
	// Ranges may begin at 1024, and browsers refuse more there.
	for _, r := range [][3]uint16{
		{1719, 1721, 1721}, {1723, 1724, 1724}, {2049, 2050, 2050}, {3659, 3660, 3660}, {4045, 4046, 4046}, {4190, 4191, 4191}, {5060, 5062, 5062},
	} {
		if _, err := pool.SetRange(t.Context(), port.Jupyter, r[0], r[1], port.AnyRevision); err != nil {
			t.Fatal(err)
		}
		if got := must(t, pool, s, fmt.Sprint("w", r[0]), port.Request{Service: port.Jupyter}); got[0] != r[2] {
			t.Errorf("of %d-%d a browser is to open %d", r[0], r[1], got[0])
		}
	}
	if _, err := pool.SetRange(t.Context(), port.RDP, 19999, 22001, port.AnyRevision); err != nil {
		t.Fatal(err)
	}
	if found := strings.Join(pool.Review(), "\n"); !strings.Contains(found, "pool of rdp (19999-22001)") || !strings.Contains(found, "ssh (22000-22999) and rdp") {
		t.Errorf("the review says %q", found)
	}
	if found := pool.ReviewOf(port.RDP); len(found) != 3 || !strings.Contains(strings.Join(found, "\n"), "rdp (19999-22001) and custom (10000-19999) overlap") {
		t.Errorf("the review of one says %q", found)
	}
	if found := pool.ReviewOf(port.VNC); len(found) != 0 {
		t.Errorf("the review of what nobody changed says %q", found)
	}
	if found := newPool(t, open(t), allFree).Review(); len(found) != 0 {
		t.Errorf("of the defaults the review says %q", found)
	}
}

// Who gets no port learns what has them, and of a changed range what is held
// outside of it.
func TestExhaustedPoolSaysWhatHasItsPorts(t *testing.T) {
	t.Parallel()
	s := open(t)
	probe := func(_ port.Protocol, p uint16) (bool, error) { return p != 10083, nil }
	pool, err := port.New(t.Context(), port.Config{
		HostID: porttest.Host, Store: s, Probe: probe, Deny: []port.Span{{Protocol: port.TCP, First: 10082, Last: 10082}},
	})
	if err != nil {
		t.Fatal(err)
	}
	custom := port.Request{Service: port.Custom, Internal: 80}
	must(t, pool, s, "before", custom, custom)
	if _, err := pool.SetRange(t.Context(), port.Custom, 10078, 10084, port.AnyRevision); err != nil {
		t.Fatal(err)
	}
	pool.SetForeign([]port.Span{{Protocol: port.TCP, First: 10084, Last: 10084, Rule: "chain DOCKER"}})
	must(t, pool, s, "a", custom)
	must(t, pool, s, "b", custom)
	must(t, pool, s, "c", custom)
	if _, err := pool.Release(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	_, err = allocate(t, pool, s, "d", custom)
	want(t, err, problem.PortPoolExhausted, "spec.ports[0]")
	const hint = "the tcp ports of 10078-10084 are 2 held by environments, 1 resting (released less than 2m0s ago), " +
		"1 denied by [ports] deny, 1 in rules of other tools, 1 refused by browsers, 1 used by other programs: delete environments, or try again later, " +
		"or ask by its number for one that browsers refuse, or widen the range (remotegpu port pool set)"
	if got := problem.Of(err).Hint; got != hint {
		t.Errorf("the hint is %q", got)
	}
	usages, err := pool.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range usages {
		if u.Service == port.Custom && (u.InUse != 2 || u.Resting != 1 || u.Free != 0 || u.Outside != 2) || u.Service != port.Custom && u.Outside != 0 {
			t.Errorf("usage %+v", u)
		}
	}
}

func TestPortsOfOtherToolsRulesAreNotGivenOut(t *testing.T) {
	t.Parallel()
	s := open(t)
	pool := newPool(t, s, allFree)
	held := must(t, pool, s, "a", port.Request{Service: port.SSH})
	if conflicts, err := pool.Conflicts(t.Context()); err != nil || len(conflicts) != 0 {
		t.Errorf("conflicts %v, error %v", conflicts, err)
	}
	pool.SetForeign([]port.Span{{Protocol: port.TCP, First: 22000, Last: 22004, Rule: "chain DOCKER"}})
	if got := must(t, pool, s, "b", port.Request{Service: port.SSH}); got[0] != 22005 {
		t.Errorf("got %v", got)
	}
	_, err := allocate(t, pool, s, "c", port.Request{Service: port.SSH, External: 22003})
	want(t, err, problem.PortTaken, "spec.ports[0].external_port")
	if !strings.Contains(err.Error(), "chain DOCKER") {
		t.Errorf("%v does not say who has it", err)
	}
	conflicts, err := pool.Conflicts(t.Context())
	if err != nil || len(conflicts) != 1 || conflicts[0].Mapping.External != held[0] || !strings.Contains(conflicts[0].String(), "chain DOCKER") {
		t.Errorf("conflicts %v, error %v", conflicts, err)
	}
	pool.SetForeign(nil)
	if conflicts, err := pool.Conflicts(t.Context()); err != nil || len(conflicts) != 0 {
		t.Errorf("conflicts that are over %v, error %v", conflicts, err)
	}
}

func TestTermsAreChecked(t *testing.T) {
	t.Parallel()
	pool := newPool(t, open(t), allFree)
	many := make([]string, port.SourceLimit+1)
	err := pool.Check([]port.Request{
		{Service: port.SSH, Sources: []string{"203.0.113.0/24", "203.0.113.5/24", "nowhere", "2001:db8::/32"}},
		{Service: port.SSH, ExpiresAt: time.Now().Add(-time.Second)},
		{Service: port.SSH, Sources: many},
		{Service: port.SSH, Sources: []string{"198.51.100.7", "0.0.0.0/0"}, ExpiresAt: time.Now().Add(time.Hour)},
	}, "spec.ports")
	var got []string
	for _, p := range problem.All(err) {
		got = append(got, string(p.Reason)+" "+p.Field)
		if p.Hint == "" {
			t.Errorf("%v has no hint", p)
		}
	}
	if want := []string{
		"FIELD_INVALID spec.ports[0].allowed_sources[1]", "FIELD_INVALID spec.ports[0].allowed_sources[2]",
		"FIELD_INVALID spec.ports[0].allowed_sources[3]", "FIELD_INVALID spec.ports[1].expires_at", "FIELD_INVALID spec.ports[2].allowed_sources",
	}; !slices.Equal(got, want) {
		t.Errorf("problems %q, want %q", got, want)
	}
	sources, bad := port.ParseSources([]string{"203.0.113.9", "203.0.113.0/24", "10.0.0.0/8", "203.0.113.0/24", "10.1.0.0/16"}, "f", false)
	if len(bad) != 0 || len(sources) != 2 || sources[0].String() != "10.0.0.0/8" || sources[1].String() != "203.0.113.0/24" {
		t.Errorf("sources %v, %v", sources, bad)
	}
	sources, bad = port.ParseSources([]string{"2001:db8::7", "203.0.113.9", "2001:db8::/32", "::ffff:203.0.113.9", "fe00::/9"}, "f", true)
	if len(bad) != 1 || len(sources) != 3 || sources[0].String() != "203.0.113.9/32" || sources[1].String() != "2001:db8::/32" || sources[2].String() != "fe00::/9" {
		t.Errorf("sources of both families %v, %v", sources, bad)
	}
	// From these nobody comes.
	never := []string{"fe80::1%eth0", "2001:db8::1%eth0", "fe80::1", "fe80::/10", "fe80::/64", "0.0.0.0", "::", "224.0.0.0/4", "ff02::1"}
	if sources, bad = port.ParseSources(never, "f", true); len(sources) != 0 || len(bad) != len(never) {
		t.Errorf("sources that never match: %v, %v", sources, bad)
	}
	// A mapping that has such from before is not everybody's therefore.
	kept := port.Mapping{}
	if kept.SetTerms(port.Request{Sources: []string{"fe80::1%eth0"}}); len(kept.Sources) != 1 {
		t.Errorf("sources from before: %v", kept.Sources)
	}
}
