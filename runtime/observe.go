package runtime

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// observed is what one pass of the reconciler has read of what should be and
// of what is.
type observed struct {
	mu           sync.Mutex      // for the maps, while they are filled
	environments []*Environment  // those not deleted, filled in
	creating     map[string]bool // those whose process is being started for the first time
	// operations are those that environments name. nil: there is none. Absent:
	// it could not be read.
	operations map[string]*operation.Operation
	containers map[string]ContainerStatus // ours, by id
	// unknown are environments that the list of containers may be wrong about,
	// and that could not be looked at again.
	unknown map[string]bool
	parts   []Part
	// cutOff are environments whose process runs and that have no network any
	// more. nil: that could not be read.
	cutOff map[string]bool
	// living are those of them whose process has its namespace still, so that the
	// network can be made again.
	living map[string]bool
	// fates are what the store knows of ids that have something on the host and
	// that no environment holds. Absent: it could not be read.
	fates map[string]Fate
	drift []port.Drift
	// snapshots are the findings about those that somebody took, and
	// strangeSnapshots counts those that the store does not know.
	snapshots        []Finding
	strangeSnapshots int
}

// observe reads everything that a pass goes by and changes nothing. What could
// not be read is in the error, and nothing is concluded from it; without
// containers or environments there is no pass at all.
func (m *Manager) observe(ctx context.Context) (*observed, error) {
	// Containers come first: an environment that appears in between is not
	// mistaken for one without.
	statuses, err := m.cfg.Engine.List(ctx)
	m.setContainerdCondition(err)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	o := &observed{
		operations: make(map[string]*operation.Operation), containers: make(map[string]ContainerStatus, len(statuses)),
		fates: make(map[string]Fate), unknown: make(map[string]bool),
	}
	for _, status := range statuses {
		o.containers[status.ID] = status
	}
	o.creating = m.creating.ids() // before the store, which may say by now that they run
	if o.environments, _, err = m.cfg.Store.Environments(ctx, Filter{}); err != nil {
		return nil, fmt.Errorf("list environments: %w", err)
	}
	errs := make([]error, len(o.environments))
	group := new(errgroup.Group) // a shim that hangs is waited for long
	group.SetLimit(mendersAtOnce)
	for i, env := range o.environments {
		m.fill(env)
		m.follow(env)
		group.Go(func() error { errs[i] = m.observeOne(ctx, o, i); return nil })
	}
	_ = group.Wait() // each has its place
	readers := []func(context.Context, *observed) error{
		m.observeNetworks, m.observeParts, m.observeLogins, m.observeVolumes, m.observeFates, m.observeDrift, m.observeSnapshots,
		func(ctx context.Context, _ *observed) error { _, err := m.lookForStrangers(ctx, statuses); return err },
	}
	found := errors.Join(errs...)
	for _, read := range readers {
		found = errors.Join(found, read(ctx, o))
	}
	return o, found
}

// observeOne reads the operation of an environment. When the environment does
// not go with its container both are looked at again: the list was older than
// the row.
func (m *Manager) observeOne(ctx context.Context, o *observed, i int) error {
	env := o.environments[i]
	o.mu.Lock()
	status, exists := o.containers[env.ID]
	o.mu.Unlock()
	if env.Operation == "" && env.Held && (!exists || env.Alive() != status.Running || env.Paused != status.Paused) {
		again, err := m.cfg.Store.Environment(ctx, env.ID)
		if err != nil && !errdefs.IsNotFound(err) {
			o.note(func() { o.unknown[env.ID] = true })
			return err
		}
		status, statusErr := m.cfg.Engine.Status(ctx, env.ID)
		if statusErr != nil && !errdefs.IsNotFound(statusErr) {
			o.note(func() { o.unknown[env.ID] = true })
			return statusErr
		}
		if err == nil {
			m.fill(again)
			env, o.environments[i] = again, again
		}
		o.note(func() {
			if statusErr == nil {
				o.containers[env.ID] = status
			} else {
				delete(o.containers, env.ID)
			}
		})
	}
	if env.Operation == "" {
		return nil
	}
	op, err := m.cfg.Store.Operation(ctx, env.Operation)
	switch {
	case err == nil, errdefs.IsNotFound(err):
		o.note(func() { o.operations[env.Operation] = op })
	default:
		return fmt.Errorf("read operation %s of environment %s: %w", env.Operation, env.ID, err)
	}
	return nil
}

// note has something written to the maps, while environments are looked at side
// by side.
func (o *observed) note(what func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	what()
}

// observeParts lists what there is on the host besides containers of ours.
func (m *Manager) observeParts(ctx context.Context, o *observed) error {
	var errs []error
	for _, source := range []struct {
		kind FindingKind
		list func(context.Context) ([]string, error)
	}{
		{FoundMounts, m.cfg.Volumes.Staged},
		{FoundDesktop, m.cfg.Desktops.Prepared},
		{FoundFiles, func(context.Context) ([]string, error) { return m.files.list() }},
	} {
		ids, err := source.list(ctx)
		errs = append(errs, err)
		for _, id := range ids {
			o.parts = append(o.parts, Part{Kind: source.kind, Name: id, EnvID: id})
		}
	}
	parts, err := m.cfg.Engine.Parts(ctx)
	errs = append(errs, err)
	pulling, err := m.pulling(ctx, o.environments)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	o.parts = append(o.parts, slices.DeleteFunc(parts, func(p Part) bool { return p.Pulling != "" && pulling[p.Pulling] })...)
	return errors.Join(errs...)
}

// observeNetworks lists networks, marks those that may be another node's, and
// finds out who runs without one, and what addresses are nobody's to give.
func (m *Manager) observeNetworks(ctx context.Context, o *observed) error {
	present, err := m.cfg.Networks.Present(ctx)
	if err != nil {
		return fmt.Errorf("list networks: %w", err)
	}
	for _, id := range present.Attached {
		o.parts = append(o.parts, Part{Kind: FoundNetwork, Name: id, EnvID: id, Common: slices.Contains(present.Unpinned, id)})
	}
	for _, name := range present.Strays {
		o.parts = append(o.parts, Part{Kind: FoundInterface, Name: name})
	}
	occupied, err := m.occupied(ctx, present.Slots, o.held())
	if err == nil {
		m.occupiedSlots.Store(&occupied)
	}
	return errors.Join(err, m.observeCutOff(ctx, o, present.Attached))
}

// held are the environments of the list that hold something on the host.
func (o *observed) held() map[string]bool {
	held := make(map[string]bool, len(o.environments))
	for _, env := range o.environments {
		held[env.ID] = env.Held
	}
	return held
}

// observeCutOff finds out who runs and is not among those that have a network, or
// has one whose namespace is not at its path: nothing could be mended in it. Who
// has changed since it was listed may have been stopped or deleted.
func (m *Manager) observeCutOff(ctx context.Context, o *observed, attached []string) error {
	has := make(map[string]bool, len(attached))
	for _, id := range attached {
		has[id] = true
	}
	var errs []error
	o.cutOff, o.living = make(map[string]bool), make(map[string]bool)
	for _, env := range o.environments {
		if env.Operation != "" || !env.Alive() || !o.containers[env.ID].Running {
			continue
		}
		pinned, err := m.cfg.Networks.Pinned(env.ID)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if has[env.ID] && pinned {
			continue
		}
		again, err := m.cfg.Store.Environment(ctx, env.ID)
		if err != nil {
			errs = append(errs, ignoreNotFound(err))
			continue
		}
		if again.Revision != env.Revision {
			continue
		}
		o.cutOff[env.ID] = true
		if namespace, err := m.cfg.Engine.NetNS(ctx, env.ID); err == nil { // else a restart makes another
			o.living[env.ID] = true
			_ = namespace.Close()
		}
	}
	return errors.Join(errs...)
}

// observeFates asks the store for what no environment in the list holds.
func (m *Manager) observeFates(ctx context.Context, o *observed) error {
	held := o.held()
	var errs []error
	ask := func(id string) {
		if _, known := o.fates[id]; known || held[id] || !isID(id) {
			return
		}
		fate, err := m.cfg.Store.Fate(ctx, id)
		if err != nil {
			errs = append(errs, err)
			return
		}
		o.fates[id] = fate
	}
	for id := range o.containers {
		ask(id)
		// It may have been deleted since it was listed.
		if fate, asked := o.fates[id]; asked && fate == FateGone {
			if _, err := m.cfg.Engine.Status(ctx, id); errdefs.IsNotFound(err) {
				delete(o.containers, id)
			}
		}
	}
	for _, part := range o.parts {
		if part.EnvID != "" {
			ask(part.EnvID)
		}
	}
	return errors.Join(errs...)
}

// observeDrift compares the host's rules with what should be published.
func (m *Manager) observeDrift(ctx context.Context, o *observed) error {
	drift, err := m.cfg.Networks.Drift(ctx, published(o.environments, o.creating), policies(o.environments))
	if err != nil {
		return fmt.Errorf("read the host's rules: %w", err)
	}
	o.drift = drift
	return nil
}

// published are the ports that environments should be reachable by. Those of
// an environment that is being created are from when its process is started,
// which may take minutes on a host that is stuck.
func published(envs []*Environment, creating map[string]bool) []port.Published {
	all := make([]port.Published, 0, len(envs))
	for _, env := range envs {
		if !env.Held || env.StartedAt.IsZero() && !creating[env.ID] {
			continue
		}
		if live := livePorts(env); len(live) > 0 {
			all = append(all, port.Published{EnvID: env.ID, Address: env.Address, Mappings: live})
		}
	}
	return all
}

// occupied are the address slots of networks that no environment of the store
// holds, by id, of those that there are: those of containers that the database does
// not know, as after it was lost, and of leftovers. Nothing else may be given their
// addresses. held are environments that are known to hold theirs.
func (m *Manager) occupied(ctx context.Context, slots map[string]int, held map[string]bool) (map[string]int, error) {
	occupied := make(map[string]int)
	for id, slot := range slots {
		if held[id] {
			continue
		}
		fate := FateUnknown
		if isID(id) {
			var err error
			if fate, err = m.cfg.Store.Fate(ctx, id); err != nil {
				return nil, err
			}
		}
		if fate != FateHeld {
			occupied[id] = slot
		}
	}
	return occupied, nil
}

// slots are those that an environment may be given.
func (m *Manager) slots(ctx context.Context) (Slots, error) {
	occupied := m.occupiedSlots.Load()
	if occupied == nil { // no pass has come this far yet
		present, err := m.cfg.Networks.Present(ctx)
		if err != nil {
			return Slots{}, fmt.Errorf("list occupied addresses: %w", err)
		}
		found, err := m.occupied(ctx, present.Slots, nil)
		if err != nil {
			return Slots{}, err
		}
		m.occupiedSlots.CompareAndSwap(nil, &found)
		occupied = &found
	}
	slots := Slots{Count: m.cfg.Networks.Slots()}
	for _, slot := range *occupied {
		slots.Occupied = append(slots.Occupied, slot)
	}
	slices.Sort(slots.Occupied)
	return slots, nil
}
