package gpu

import "slices"

// Change is how the leases of an environment become those that it asks for.
// Added ones have neither id nor owner.
type Change struct {
	Keep, Drop, Add []Lease
}

// Allocate finds out which GPUs an environment gets for a request, which has
// been checked; nil asks for none. What it holds and fits the request it keeps.
// Errors: GPU_NOT_FOUND, GPU_EXHAUSTED, GPU_MODE_CONFLICT, GPU_UNHEALTHY,
// GPU_DRAINED, GPU_NOT_ENFORCEABLE, GPU_CAPABILITY_UNSUPPORTED; field is the
// path of the request in the API request.
func Allocate(books Books, rules Rules, envID string, req *Request, field string) (Change, error) {
	configured := rules.Enforcers
	rules = rules.On(books.Devices)
	change, others := split(&books, &rules, envID, req)
	if req == nil {
		return change, nil
	}
	if len(change.Keep) == req.Count {
		return change, rules.severalServed(&books, &change, req, field)
	}
	missing, enforcement := req.Count-len(change.Keep), enforcementOf(&rules, req)
	if req.Mode == VGPU && enforcement == ByNone && !req.AllowUnenforced && len(books.Devices) > 0 { // without any that is the answer
		return Change{}, notEnforceable(&rules, configured, req, field)
	}
	var able []candidate
	var refused []refusal
	var kept []*Device
	accounts := others.accounts()
	for i := range accounts {
		a := &accounts[i]
		if slices.ContainsFunc(change.Keep, func(l Lease) bool { return l.GPU == a.UUID }) {
			kept = append(kept, a.Device)
			continue
		}
		c, why := rules.consider(a, req, enforcement)
		if why.reason == "" {
			able = append(able, c)
		} else {
			refused = append(refused, why)
		}
	}
	if len(able) < missing {
		return Change{}, others.refuse(req, missing, able, refused, field)
	}
	for _, c := range choose(able, missing, kept, &rules, accounts) {
		change.Add = append(change.Add, c.lease(req, enforcement))
	}
	return change, rules.severalServed(&books, &change, req, field)
}

// split tells which of its leases an environment keeps for a request, and what
// the others have. All that do not fit it gives back first.
func split(books *Books, rules *Rules, envID string, req *Request) (change Change, others Books) {
	others = Books{Devices: books.Devices, Marks: books.Marks, Planned: books.Planned, MIG: books.MIG}
	for _, l := range books.Held {
		switch {
		case l.EnvID != envID || envID == "":
			others.Held = append(others.Held, l)
		case req != nil && len(change.Keep) < req.Count && books.fits(&l, rules, req):
			change.Keep = append(change.Keep, l)
		default:
			change.Drop = append(change.Drop, l)
		}
	}
	others.Devices = without(books.Devices, change.Drop)
	return change, others
}

// without are GPUs as they are when the instances that were made for leases have
// gone with these.
func without(devices []Device, dropped []Lease) []Device {
	devices = slices.Clone(devices)
	for i := range devices {
		d := &devices[i]
		for _, l := range dropped {
			if instance, there := d.InstanceOf(l); there && l.GPU == d.UUID && !l.Static {
				d.MIG.Instances = slices.DeleteFunc(slices.Clone(d.MIG.Instances), func(other MIGInstance) bool { return other == instance })
			}
		}
	}
	return devices
}

// lease is what a request gets of a GPU.
func (c *candidate) lease(req *Request, enforcement Enforcement) Lease {
	l := Lease{GPU: c.UUID, Mode: req.Mode, Enforcement: enforcement}
	switch req.Mode {
	case MIGMode:
		l.Profile, l.Placement, l.Static, l.MemoryBytes = req.Profile, c.place.at, c.place.exists, c.place.memory
	case VGPU:
		l.MemoryBytes, l.ComputePercent = wholeMiB(req.MemoryBytes), req.ComputePercent
	case Exclusive, Shared:
	}
	return l
}

// enforcementOf is what will keep others off what a lease gives.
func enforcementOf(rules *Rules, req *Request) Enforcement {
	switch req.Mode {
	case Exclusive:
		return BySole
	case MIGMode:
		return ByHardware
	case VGPU:
		return rules.enforcer(req)
	default:
		return ByNone
	}
}

// fits says that a lease is what a request asks for, so that the environment
// keeps it. One of a GPU that has gone, or that is not well, it does not keep,
// nor one that would be held otherwise now: what held it may have been turned
// off, and its environment could not start. Nor one that others' exclude.
func (b *Books) fits(l *Lease, rules *Rules, req *Request) bool {
	d, found := b.Device(l.GPU)
	if !found || l.Mode != req.Mode || !req.names(&d) {
		return false
	}
	a := b.account(&d)
	health := a.health()
	if health.Failed() || a.excludes(l) || !health.Unsure && a.partitioned != (l.Mode == MIGMode) {
		return false
	}
	switch req.Mode {
	case MIGMode:
		return l.Profile == req.Profile && a.offers(req)
	case VGPU:
		return l.MemoryBytes == wholeMiB(req.MemoryBytes) && l.ComputePercent == req.ComputePercent &&
			l.Enforcement == rules.enforcer(req) && (l.Enforcement != ByNone || req.AllowUnenforced)
	default:
		return true
	}
}

// offers says that instances of a request's profile have what it wants of them. A
// GPU that does not tell now is not taken to have changed.
func (a *account) offers(req *Request) bool {
	profile, told := a.Profile(req.Profile)
	if !told && a.health().Unsure {
		return true
	}
	return profile.MemoryBytes >= req.MemoryBytes && (profile.Graphics || !req.draws())
}

// candidate is a GPU that a request can have.
type candidate struct {
	*account
	place place // mode mig
}

// consider says whether a request can have a GPU, or why not.
func (r *Rules) consider(a *account, req *Request, enforcement Enforcement) (candidate, refusal) {
	c := candidate{account: a}
	if !req.names(a.Device) {
		return c, refusal{a, notAsked, "is not what was asked for"}
	}
	if a.Vendor != NVIDIA {
		if req.Mode != Shared {
			return c, refusal{a, wrongMode, "can only be shared"}
		}
		if !req.graphicsOnly() && !slices.Contains(req.UUIDs, a.UUID) {
			return c, refusal{a, notAsked, "draws, and computes nothing for CUDA"}
		}
	}
	if health := a.health(); health.Failed() {
		return c, refusal{a, sick, "is unhealthy: " + health.Reason}
	} else if health.Unsure {
		return c, refusal{a, unsure, "cannot be told to be well: " + health.Reason}
	} else if health.Unhealthy {
		return c, refusal{a, hot, "cannot be given now: " + health.Reason}
	}
	if a.mark.Drained {
		return c, refusal{a, drained, "is drained" + because(a.mark.Why)}
	}
	if a.partitioned != (req.Mode == MIGMode) {
		if a.partitioned {
			return c, refusal{a, wrongMode, "is partitioned (MIG is on)"}
		}
		return c, refusal{a, wrongMode, "is not partitioned (MIG is off)"}
	}
	if mode := a.mode(); mode != "" && (mode != req.Mode || mode == Exclusive) {
		if mode == Exclusive || req.Mode == Exclusive {
			return c, refusal{a, taken, "is used by " + a.holders()}
		}
		return c, refusal{a, wrongMode, "is in the mode " + string(mode) + " for " + a.holders()}
	}
	if r.servesNoMore(a, req, enforcement) {
		return c, refusal{a, taken, "has as many clients as MPS serves on it, " + itoa(a.mpsClients()) + ": " + a.holders()}
	}
	return r.fit(c, req, enforcement)
}

// fit says whether a GPU of the right mode has room.
func (r *Rules) fit(c candidate, req *Request, enforcement Enforcement) (candidate, refusal) {
	a := c.account
	switch req.Mode {
	case Shared:
		if len(a.held) >= r.maxShared() {
			return c, refusal{a, taken, "is shared by " + itoa(len(a.held)) + " already: " + a.holders()}
		}
	case MIGMode:
		profile, found := a.Profile(req.Profile)
		if !found {
			return c, refusal{a, noProfile, "has no profile " + req.Profile}
		}
		if req.MemoryBytes > profile.MemoryBytes {
			return c, refusal{a, tooSmall, "has instances " + req.Profile + " of " + mebibytes(profile.MemoryBytes)}
		}
		if req.draws() && !profile.Graphics {
			return c, refusal{a, cannotDraw, "has instances " + req.Profile + " that cannot draw"}
		}
		if c.place, found = a.place(profile); !found {
			return c, refusal{a, taken, "has no place left for " + req.Profile + a.instances()}
		}
	case VGPU:
		if other := slices.IndexFunc(a.held, func(l Lease) bool { return l.Enforcement != enforcement }); other >= 0 {
			return c, refusal{a, wrongMode, "has shares that are enforced otherwise (" + string(a.held[other].Enforcement) + ")"}
		}
		memory, percent := a.shares()
		total := a.MemoryBytes - min(a.MemoryBytes, r.ReserveBytes)
		wanted := wholeMiB(req.MemoryBytes)
		if wanted > total {
			return c, refusal{a, tooSmall, "has " + mebibytes(total) + " for shares"}
		}
		if free := total - min(total, memory); wanted > free {
			return c, refusal{a, taken, "has " + mebibytes(free) + " left of " + mebibytes(total)}
		}
		if percent+req.ComputePercent > 100 {
			return c, refusal{a, taken, "has " + itoa(100-percent) + " % of its compute left"}
		}
	case Exclusive:
	}
	return c, refusal{}
}
