package runtime

import (
	"reflect"
	"slices"
	"strings"

	"github.com/remotegpu/remotegpu/gpu"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
)

// FieldLabels is the path of an environment's labels.
const FieldLabels = "labels"

// field is a part of a spec that can be changed.
type field struct {
	path string // as in the API
	copy func(to, from *Spec)
	same func(a, b *Spec) bool
	// waits says that a process that was started with one spec has to be
	// started again to have the other. nil: it never has to.
	waits func(a, b *Spec) bool
}

// live is a field whose change is in force at once.
func live[T any](path string, get func(*Spec) *T) field {
	return field{
		path: path,
		copy: func(to, from *Spec) { *get(to) = *get(from) },
		same: func(a, b *Spec) bool { return equal(*get(a), *get(b)) },
	}
}

// atStart is a field whose change is in force when the process starts.
func atStart[T any](path string, get func(*Spec) *T) field {
	f := live(path, get)
	f.waits = func(a, b *Spec) bool { return !f.same(a, b) }
	return f
}

// equal compares values; an empty list or map equals none.
func equal[T any](a, b T) bool {
	x, y := reflect.ValueOf(&a).Elem(), reflect.ValueOf(&b).Elem()
	switch x.Kind() { //nolint:exhaustive // the others have no empty form beside nil
	case reflect.Slice, reflect.Map:
		if x.Len() == 0 && y.Len() == 0 {
			return true
		}
	}
	return reflect.DeepEqual(a, b)
}

// Paths that Update looks at by name.
const (
	fieldHostname = "spec.hostname"
	fieldMounts   = "spec.mounts"
	fieldPorts    = "spec.ports"
	fieldHealth   = "spec.health_check"
	fieldRestart  = "spec.restart"
	fieldNetwork  = "spec.network"
	groupLimits   = "spec.resources"
)

// fields are the parts of a spec that can be changed, in the order they are
// told of. Its image cannot: the writable layer is made on it.
func fields() []field {
	ports := live(fieldPorts, func(s *Spec) *[]port.Request { return &s.Ports })
	// The ports themselves follow at once; an image starts its servers for
	// these by a variable.
	ports.waits = func(a, b *Spec) bool {
		for _, service := range []port.Service{port.VNC, port.NoVNC} {
			if offers(a, service) != offers(b, service) {
				return true
			}
		}
		return false
	}
	return []field{
		live("spec.resources.cpu_millis", func(s *Spec) *int64 { return &s.Resources.CPUMillis }),
		live("spec.resources.memory_bytes", func(s *Spec) *int64 { return &s.Resources.MemoryBytes }),
		live("spec.resources.swap_bytes", func(s *Spec) *int64 { return &s.Resources.SwapBytes }),
		live("spec.resources.pids", func(s *Spec) *int64 { return &s.Resources.Pids }),
		atStart("spec.resources.shm_bytes", func(s *Spec) *int64 { return &s.Resources.ShmBytes }),
		atStart("spec.resources.ulimits", func(s *Spec) *[]Ulimit { return &s.Resources.Ulimits }),
		atStart(fieldDisk, func(s *Spec) *int64 { return &s.Resources.DiskBytes }),
		atStart("spec.resources.disk_best_effort", func(s *Spec) *bool { return &s.Resources.DiskBestEffort }),
		atStart("spec.entrypoint", func(s *Spec) *[]string { return &s.Entrypoint }),
		atStart("spec.command", func(s *Spec) *[]string { return &s.Command }),
		atStart("spec.workdir", func(s *Spec) *string { return &s.Workdir }),
		atStart("spec.user", func(s *Spec) *string { return &s.User }),
		atStart("spec.env", func(s *Spec) *map[string]string { return &s.Env }),
		atStart(fieldHostname, func(s *Spec) *string { return &s.Hostname }),
		atStart(fieldMounts, mountsOf),
		ports,
		atStart(fieldGPU, func(s *Spec) **gpu.Request { return &s.GPU }),
		atStart("spec.desktop", func(s *Spec) **Desktop { return &s.Desktop }),
		atStart("spec.allow_new_privileges", func(s *Spec) *bool { return &s.AllowNewPrivileges }),
		live(fieldRestart, func(s *Spec) **RestartPolicy { return &s.Restart }),
		live(fieldHealth, func(s *Spec) **HealthCheck { return &s.HealthCheck }),
		live(fieldNetwork, func(s *Spec) **policy.Policy { return &s.Network }),
	}
}

func offers(spec *Spec, service port.Service) bool {
	return slices.ContainsFunc(spec.Ports, func(r port.Request) bool { return r.Service == service })
}

// UpdatableFields are the paths that Update takes.
func UpdatableFields() []string {
	paths := []string{FieldLabels}
	for _, f := range fields() {
		paths = append(paths, f.path)
	}
	return paths
}

// selectFields finds the fields of paths, of which one may stand for several.
// FIELD_INVALID for what cannot be changed.
func selectFields(paths []string) (found []field, labels bool, err error) {
	chosen := make(map[string]bool)
	all := fields()
	for _, path := range paths {
		known := path == FieldLabels
		labels = labels || known
		for _, f := range all {
			if f.path == path || path == groupLimits && strings.HasPrefix(f.path, path+".") {
				chosen[f.path], known = true, true
			}
		}
		if known {
			continue
		}
		p := problem.New(problem.FieldInvalid, "field %q cannot be changed", path).WithField("update_mask").
			WithHint("use some of %s", strings.Join(UpdatableFields(), ", "))
		if path == "spec.image" || path == "spec.pull_policy" || path == "spec.snapshot" {
			p = p.WithHint("the writable layer is made on the image: create another environment")
		}
		return nil, false, p
	}
	for _, f := range all {
		if chosen[f.path] {
			found = append(found, f)
		}
	}
	return found, labels, nil
}

func hasField(all []field, path string) bool {
	return slices.ContainsFunc(all, func(f field) bool { return f.path == path })
}

// hasLimits says that limits are among the fields that Engine.Update changes.
func hasLimits(all []field) bool {
	return slices.ContainsFunc(all, func(f field) bool { return f.waits == nil && strings.HasPrefix(f.path, groupLimits+".") })
}

// RestartNeeded are the fields of its spec that an environment's process was
// started without.
func (e *Environment) RestartNeeded() []string {
	if e.Applied == nil {
		return nil
	}
	return waiting(e.Applied, &e.Spec)
}

// waiting are the fields for which a process that was started with one spec has
// to be started again to have the other.
func waiting(applied, spec *Spec) (paths []string) {
	for _, f := range fields() {
		if f.waits != nil && f.waits(applied, spec) {
			paths = append(paths, f.path)
		}
	}
	return paths
}

// respec gives an environment another spec. What its process was started with
// is kept as long as it matters.
func respec(env *Environment, spec *Spec) {
	applied := *env.Effective()
	for _, f := range fields() {
		if f.waits == nil {
			f.copy(&applied, spec)
		}
	}
	env.Clear = env.Clear || len(spec.Mounts) == 0 && len(applied.Mounts) > 0 || spec.Desktop == nil && applied.Desktop != nil
	if env.Spec, env.Applied = *spec, nil; env.Alive() && len(waiting(&applied, spec)) > 0 {
		env.Applied = &applied
	}
}

// sameSpec says that nothing of a spec that can be changed differs.
func sameSpec(a, b *Spec) bool {
	for _, f := range fields() {
		if !f.same(a, b) {
			return false
		}
	}
	return true
}
