package store_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/network/port/porttest"
	"github.com/remotegpu/remotegpu/runtime"
)

// What a mapping was like at a time stays known when it has been changed since.
func TestTermsOfPortsAtATime(t *testing.T) {
	t.Parallel()
	s := open(t)
	env := environment("a")
	create(t, s, env, 10000, 10001)
	held, err := s.Environment(t.Context(), env.ID)
	if err != nil {
		t.Fatal(err)
	}
	m := held.Ports[0]
	sources := [][]netip.Prefix{nil, {netip.MustParsePrefix("203.0.113.0/24")}, {netip.MustParsePrefix("198.51.100.7/32")}, nil}
	times := make([]time.Time, 0, len(sources))
	for i, list := range sources {
		if i > 0 {
			m.Sources, m.Description, m.ExpiresAt = list, fmt.Sprint(i), time.UnixMilli(int64(i)*1e12).UTC()
			if _, _, err := s.ChangePorts(t.Context(), env.ID, port.Change{Describe: []port.Mapping{m}}, func(*runtime.Environment) error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Millisecond)
		times = append(times, time.Now())
		time.Sleep(2 * time.Millisecond)
	}
	remove(t, s, env.ID)
	for i, at := range times {
		found, _, err := s.PortMappings(t.Context(), porttest.Host, port.Filter{At: at, Limit: 10})
		if err != nil || len(found) != 2 || !slices.Equal(found[0].Sources, sources[i]) || i > 0 && (found[0].Description != fmt.Sprint(i) || found[0].ExpiresAt.UnixMilli() != int64(i)*1e12) ||
			len(found[1].Sources) != 0 || found[0].EnvName != "a" {
			t.Errorf("at the time of %d: %+v, %v", i, found, err)
		}
	}
	// They go with the mapping.
	if _, err := s.PurgeDeleted(t.Context(), time.Now().AddDate(3, 0, 0)); err != nil {
		t.Fatal(err)
	}
	if found, _, err := s.PortMappings(t.Context(), porttest.Host, port.Filter{IncludeReleased: true}); err != nil || len(found) != 0 {
		t.Errorf("after the purge: %+v, %v", found, err)
	}
}
