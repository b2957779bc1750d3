package gpu

import "cmp"

// sliceSet is a set of memory slices of a GPU: at most 64.
type sliceSet uint64

func setOf(s Span) sliceSet {
	if s.Size <= 0 || s.Start < 0 || s.Start+s.Size > 64 {
		return 0
	}
	return (sliceSet(1)<<s.Size - 1) << s.Start
}

// Overlaps says that two spans have a slice in common.
func (s Span) Overlaps(other Span) bool { return setOf(s)&setOf(other) != 0 }

// place is where an instance goes.
type place struct {
	at Span
	// exists says that it is there, and stays when the lease ends.
	exists bool
	hole   int // slices of the largest hole that is left beside it
	memory uint64
}

// place finds the best place for an instance of a profile: one that exists, or
// is to be made again, and nobody has, else a free one that leaves the largest
// hole.
func (a *account) place(profile MIGProfile) (place, bool) {
	taken := a.leased() | a.going()
	for _, instance := range a.MIG.Instances {
		if instance.Profile == profile.Name && setOf(instance.Placement)&taken == 0 {
			return place{instance.Placement, true, a.largestHole(a.taken()), instance.MemoryBytes}, true
		}
	}
	for _, p := range a.planned {
		// What else is there now is in its way.
		if !p.Remove && p.Profile == profile.Name && setOf(p.Placement)&(taken|a.made()) == 0 {
			return place{p.Placement, true, a.largestHole(a.taken()), profile.MemoryBytes}, true
		}
	}
	return a.free(profile)
}

// free finds the free place that leaves the largest hole.
func (a *account) free(profile MIGProfile) (place, bool) {
	taken := a.taken()
	best, found := place{memory: profile.MemoryBytes}, false
	for _, at := range profile.Placements {
		set := setOf(at)
		if set == 0 || set&taken != 0 {
			continue
		}
		// Of equals the last: the first slices are those that larger profiles
		// begin at.
		if hole := a.largestHole(taken | set); !found || hole >= best.hole {
			best.at, best.hole, found = at, hole, true
		}
	}
	return best, found
}

// leased are the slices that leases have.
func (a *account) leased() (set sliceSet) {
	for _, l := range a.held {
		set |= setOf(l.Placement)
	}
	return set
}

// made are the slices of the instances that exist.
func (a *account) made() (set sliceSet) {
	for _, instance := range a.MIG.Instances {
		set |= setOf(instance.Placement)
	}
	return set
}

// going are the slices of the instances that are to be removed.
func (a *account) going() (set sliceSet) {
	for _, p := range a.planned {
		if p.Remove {
			set |= setOf(p.Placement)
		}
	}
	return set
}

// taken are the slices that no new instance may have: of leases, and of
// instances that are there, are to be, or are to go.
func (a *account) taken() sliceSet {
	set := a.leased() | a.made()
	for _, p := range a.planned {
		set |= setOf(p.Placement)
	}
	return set
}

// largestHole is the size of the largest instance that still fits.
func (a *account) largestHole(taken sliceSet) (hole int) {
	for _, profile := range a.MIG.Profiles {
		for _, at := range profile.Placements {
			if set := setOf(at); set != 0 && set&taken == 0 {
				hole = max(hole, at.Size)
			}
		}
	}
	return hole
}

// FreePlace finds where a new instance of a profile goes on a partitioned GPU so
// that the largest hole is left: beside the instances that there are, those
// that leases are of, and those that are planned.
func (b *Books) FreePlace(d *Device, profile MIGProfile) (Span, bool) {
	a := b.account(d)
	p, found := a.free(profile)
	return p.at, found
}

// Taken says what is in the way of an instance of a profile at a place of a
// partitioned GPU: another instance, a lease, or what is planned. "": nothing;
// that this very one is to be made again is none.
func (b *Books) Taken(d *Device, profile string, at Span) string {
	for _, l := range b.Leases(d.UUID) {
		if l.Placement.Overlaps(at) {
			return "environment " + cmp.Or(l.EnvName, l.EnvID) + " has instance " + l.Profile + " at " + itoa(l.Placement.Start)
		}
	}
	for _, instance := range d.MIG.Instances {
		if instance.Placement.Overlaps(at) {
			return "instance " + instance.UUID + " (" + instance.Profile + ") is at " + itoa(instance.Placement.Start)
		}
	}
	for _, p := range b.PlannedOn(d.UUID) {
		if p.Placement.Overlaps(at) && (p.Remove || p.Profile != profile || p.Placement != at) {
			return p.describe()
		}
	}
	return ""
}
