package gpu

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Mark is what is kept about a GPU beside what its driver says: it outlives
// restarts of the daemon and of the host.
type Mark struct {
	GPU       string    `json:"gpu"` // UUID
	Drained   bool      `json:"drained,omitempty"`
	Why       string    `json:"why,omitempty"` // it is drained, for people
	DrainedAt time.Time `json:"drained_at"`
	// Health is unhealthy from a fatal event on until somebody resets it.
	Health Health `json:"health"`
	// Uncorrected is how many memory errors that nobody corrected the GPU had when
	// that was last looked at; not known before Counted.
	Uncorrected uint64 `json:"uncorrected,omitempty"`
	Counted     bool   `json:"counted,omitempty"`
	Revision    int64  `json:"revision"` // counts changes, from 1; 0: nothing was ever kept
}

// Books is what an allocation goes by: what there is and who has it.
type Books struct {
	Devices []Device
	Held    []Lease
	Marks   []Mark
	// Planned are instances that are to be or to go, and MIG the UUIDs of GPUs
	// whose MIG mode an administrator wants on, whatever the driver says.
	Planned []Planned
	MIG     []string
}

// Mark returns what is kept about a GPU.
func (b *Books) Mark(uuid string) Mark {
	for i := range b.Marks {
		if b.Marks[i].GPU == uuid {
			return b.Marks[i]
		}
	}
	return Mark{GPU: uuid}
}

// Leases returns those of one GPU, oldest first.
func (b *Books) Leases(uuid string) []Lease {
	var held []Lease
	for i := range b.Held {
		if b.Held[i].GPU == uuid {
			held = append(held, b.Held[i])
		}
	}
	return held
}

// Device finds a GPU by its UUID.
func (b *Books) Device(uuid string) (Device, bool) {
	at := slices.IndexFunc(b.Devices, func(d Device) bool { return d.UUID == uuid })
	if at < 0 {
		return Device{}, false
	}
	return b.Devices[at], true
}

// Find finds the GPUs that people mean by a name: a UUID or the beginning of
// one, a PCI address, or an index of NVML.
func (b *Books) Find(name string) []Device {
	if device, found := b.Device(name); found {
		return []Device{device}
	}
	var found []Device
	for i := range b.Devices {
		d := &b.Devices[i]
		bare := strings.TrimPrefix(d.UUID, "GPU-")
		short := len(name) >= 4 && (strings.HasPrefix(d.UUID, name) || strings.HasPrefix(bare, name))
		if short || strings.EqualFold(d.PCI, name) || d.Index >= 0 && itoa(d.Index) == name {
			found = append(found, *d)
		}
	}
	return found
}

// InstanceOf finds the instance that a lease is about among those that a GPU has: its
// UUID changes each time it is made, its place does not.
func (d *Device) InstanceOf(l Lease) (MIGInstance, bool) {
	if l.Mode != MIGMode {
		return MIGInstance{}, false
	}
	for _, instance := range d.MIG.Instances {
		if instance.Placement == l.Placement && instance.Profile == l.Profile {
			return instance, true
		}
	}
	return MIGInstance{}, false
}

// Profile finds a profile of MIG instances by its name.
func (d *Device) Profile(name string) (MIGProfile, bool) {
	for _, p := range d.MIG.Profiles {
		if p.Name == name {
			return p, true
		}
	}
	return MIGProfile{}, false
}

// account is one GPU as an allocation sees it.
type account struct {
	*Device
	mark        Mark
	held        []Lease
	planned     []Planned
	partitioned bool // instances alone are given of it
}

// mode is the one that the leases of the GPU give it; "" when there are none.
// Where a container that the database does not know has it in another mode than
// those that it knows nobody gets any of it.
func (a *account) mode() Mode {
	if len(a.held) == 0 {
		return ""
	}
	mode := a.held[0].Mode
	if slices.ContainsFunc(a.held, func(l Lease) bool { return l.Mode != mode }) {
		return Exclusive
	}
	return mode
}

// excludes says that what others have of the GPU leaves no room for a lease that
// is held. The database has no such leases; a database that was restored may,
// beside what containers hold that it does not know. What was configured since
// takes no lease away, so it is not looked at.
func (a *account) excludes(l *Lease) bool {
	memory, percent := l.MemoryBytes, l.ComputePercent
	for i := range a.held {
		other := &a.held[i]
		switch {
		case other.EnvID == l.EnvID:
			continue
		case other.Mode != l.Mode || l.Mode == Exclusive,
			l.Mode == MIGMode && other.Placement.Overlaps(l.Placement),
			l.Mode == VGPU && other.Enforcement != l.Enforcement:
			return true
		}
		memory, percent = memory+other.MemoryBytes, percent+other.ComputePercent
	}
	return l.Mode == VGPU && (a.MemoryBytes > 0 && memory > a.MemoryBytes || percent > 100)
}

// health is that of the GPU, what is kept of it first.
func (a *account) health() Health {
	if a.mark.Health.Unhealthy {
		return a.mark.Health
	}
	return a.Health
}

// shares are the sums of what the leases of the GPU have of it.
func (a *account) shares() (memory uint64, percent int) {
	for _, l := range a.held {
		memory += l.MemoryBytes
		percent += l.ComputePercent
	}
	return memory, percent
}

// account is that of one GPU.
func (b *Books) account(d *Device) account {
	return account{Device: d, mark: b.Mark(d.UUID), held: b.Leases(d.UUID), planned: b.PlannedOn(d.UUID), partitioned: b.Partitioned(d)}
}

// accounts are those of all GPUs, by PCI address.
func (b *Books) accounts() []account {
	all := make([]account, len(b.Devices))
	for i := range b.Devices {
		d := &b.Devices[i]
		all[i] = b.account(d)
	}
	slices.SortStableFunc(all, func(x, y account) int {
		return cmp.Or(cmp.Compare(x.PCI, y.PCI), cmp.Compare(x.UUID, y.UUID))
	})
	return all
}
