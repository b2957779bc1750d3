package gpu

import (
	"cmp"
	"slices"
	"time"
)

// Planned is an instance that is to be there, or to go, whatever the driver has
// now. It is found by GPU, profile and place.
type Planned struct {
	GPU       string `json:"gpu"` // UUID
	Profile   string `json:"profile"`
	Placement Span   `json:"placement"`
	// Remove says that it is to go. Otherwise an administrator made it, and it is
	// made again when the host has lost it.
	Remove bool `json:"remove,omitempty"`
	// EnvID and EnvName are who had it that is to go; "": an administrator did
	// away with it.
	EnvID     string    `json:"env_id,omitempty"`
	EnvName   string    `json:"env_name,omitempty"` // as it is called now; "": it is not known any more
	CreatedAt time.Time `json:"created_at"`
}

// Same says that another is about the same instance of the same holder.
func (p *Planned) Same(other *Planned) bool {
	return p.GPU == other.GPU && p.Profile == other.Profile && p.Placement == other.Placement && p.EnvID == other.EnvID
}

// Of says that an instance is the planned one.
func (p *Planned) Of(i *MIGInstance) bool {
	return i.Profile == p.Profile && i.Placement == p.Placement
}

// Find finds the instance among those of its GPU.
func (p *Planned) Find(d *Device) (MIGInstance, bool) {
	for i := range d.MIG.Instances {
		if p.Of(&d.MIG.Instances[i]) {
			return d.MIG.Instances[i], true
		}
	}
	return MIGInstance{}, false
}

// describe says what it is, for who wants its place.
func (p *Planned) describe() string {
	if !p.Remove {
		return "instance " + p.Profile + " at " + itoa(p.Placement.Start) + " of the administrator's is to be made again"
	}
	text := "instance " + p.Profile + " at " + itoa(p.Placement.Start)
	if p.EnvID != "" {
		text += " that environment " + cmp.Or(p.EnvName, p.EnvID) + " had"
	}
	return text + " is to be removed"
}

// PlannedOn returns those of one GPU.
func (b *Books) PlannedOn(uuid string) []Planned {
	var planned []Planned
	for i := range b.Planned {
		if b.Planned[i].GPU == uuid {
			planned = append(planned, b.Planned[i])
		}
	}
	return planned
}

// Partitioned says that a GPU has instances, or is to have: its MIG mode is on,
// or an administrator turned it on and the host has lost that with a reboot,
// which mends without a reset.
func (b *Books) Partitioned(d *Device) bool {
	wanted := slices.Contains(b.MIG, d.UUID) ||
		slices.ContainsFunc(b.Planned, func(p Planned) bool { return p.GPU == d.UUID && !p.Remove })
	return d.MIG.Enabled || d.MIG.Capable && !d.MIG.Pending && wanted
}
