package gpu

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// refusalKind is why a request cannot have a GPU.
type refusalKind string

// The kinds.
const (
	notAsked   refusalKind = "not asked for"
	wrongMode  refusalKind = "mode"
	sick       refusalKind = "unhealthy"
	hot        refusalKind = "hot"
	unsure     refusalKind = "unsure"
	drained    refusalKind = "drained"
	taken      refusalKind = "taken"
	noProfile  refusalKind = "profile"
	cannotDraw refusalKind = "graphics"
	tooSmall   refusalKind = "memory"
)

// refusal is why a request cannot have a certain GPU; without a reason it can.
type refusal struct {
	*account
	reason refusalKind
	text   string
}

// told is how many GPUs a message tells of.
const told = 8

// refuse says why a request gets nothing, and what there is.
func (b *Books) refuse(req *Request, missing int, able []candidate, refused []refusal, field string) error {
	asked := slices.DeleteFunc(slices.Clone(refused), func(r refusal) bool { return r.reason == notAsked })
	if len(b.Devices) == 0 {
		return problem.New(problem.GPUNotFound, "this host has no GPU").WithField(field).
			WithHint("see what the node says of it: remotegpu gpu ls")
	}
	if unknown := slices.DeleteFunc(slices.Clone(req.UUIDs), func(uuid string) bool { _, found := b.Device(uuid); return found }); len(unknown) > 0 {
		return problem.New(problem.GPUNotFound, "this host has no GPU %s", strings.Join(unknown, ", ")).WithField(field+".uuids").
			WithHint("it has %s", b.models())
	}
	if len(asked)+len(able) < missing {
		p := problem.New(problem.GPUNotFound, "this host has %d GPUs that would do, %d are wanted", len(asked)+len(able), missing).WithField(field)
		if len(asked)+len(able) == 0 {
			p.Message = "no GPU of this host is what was asked for: " + req.describe()
		}
		return p.WithHint("it has %s", b.models())
	}
	weighed := asked
	if partitioned := slices.DeleteFunc(slices.Clone(asked), func(r refusal) bool { return r.reason == wrongMode }); req.Mode == MIGMode && len(partitioned) > 0 {
		weighed = partitioned // the others could never have done
	}
	reason, hint, at := weigh(weighed, req)
	message := fmt.Sprintf("%s: %d of %d can be had", req.describe(), len(able), missing)
	lines := make([]string, 0, told)
	for i, r := range asked {
		if i == told {
			lines = append(lines, fmt.Sprintf("%d more", len(asked)-told))
			break
		}
		lines = append(lines, fmt.Sprintf("%s (%s) %s", short(r.UUID), r.Model, r.text))
	}
	return problem.New(reason, "%s; %s", message, strings.Join(lines, "; ")).WithField(field+at).WithHint("%s", hint)
}

// weigh finds what of several refusals is told as the reason, what to do about it,
// and the field of the request (".profile"; "": the whole): that of the GPU which is
// the nearest to being had. One that somebody has may be free in a moment.
func weigh(refused []refusal, req *Request) (reason problem.Reason, hint, at string) {
	there := func(kind refusalKind) bool {
		return slices.ContainsFunc(refused, func(r refusal) bool { return r.reason == kind })
	}
	switch {
	case there(taken):
		return problem.GPUExhausted, "stop or delete who has one, ask for less, or share one", ""
	case there(hot):
		return problem.GPUUnhealthy, "wait: it is given again when it has been cool for a while; see to the host's fans and air", ""
	case there(unsure):
		return problem.GPUUnhealthy, "try again in a moment; if it lasts look at the host's kernel log, and whether nvidia-smi works", ""
	case there(drained):
		return problem.GPUDrained, "ask for another GPU, or have it undrained: remotegpu gpu undrain GPU", ""
	case there(sick):
		return problem.GPUUnhealthy, "look at the host's kernel log; an administrator gives it free again: remotegpu gpu undrain --reset-health GPU", ""
	case there(wrongMode) && req.Mode == MIGMode:
		return problem.GPUModeConflict, "an administrator turns MIG on, on an idle GPU: remotegpu gpu mig mode GPU on", ""
	case there(wrongMode):
		return problem.GPUModeConflict, "ask for the mode that they are in, or for another GPU", ""
	case there(cannotDraw):
		return problem.GPUCapability, "use a profile with +gfx or a whole GPU, or leave graphics out of the capabilities", ".capabilities"
	case there(tooSmall) && req.Mode == MIGMode:
		return problem.GPUNotFound, "leave memory_bytes out (--gpu-memory), or use a larger profile: " + profiles(refused), ".memory_bytes"
	case there(tooSmall):
		return problem.GPUNotFound, "ask for less, or for a whole GPU; gpu.reserve in the node's configuration is left of each", ".memory_bytes"
	default:
		return problem.GPUNotFound, "they have " + profiles(refused), ".profile"
	}
}

// describe says what a request asks for.
func (r *Request) describe() string {
	text := fmt.Sprintf("%d × %s", r.Count, r.Mode)
	if len(r.Models) > 0 {
		text += " of model " + strings.Join(r.Models, " or ")
	}
	if r.Profile != "" {
		text += " " + r.Profile
	}
	if r.MemoryBytes > 0 {
		text += " with " + mebibytes(r.MemoryBytes)
	}
	if r.ComputePercent > 0 {
		text += fmt.Sprintf(" and %d %% of compute", r.ComputePercent)
	}
	return text
}

func notEnforceable(rules *Rules, configured []Enforcement, req *Request, field string) error {
	what := "nothing on this host keeps others off a share of a GPU's memory"
	switch {
	case slices.Contains(rules.Enforcers, ByMPS): // so it is the number
		return problem.New(problem.GPUNotEnforceable, "nothing on this host keeps others off shares of %d GPUs: MPS serves an environment on one", req.Count).
			WithField(field + ".count").WithHint("ask for one GPU, or for the mode exclusive or mig")
	case slices.Contains(configured, ByDriver) && !slices.Contains(rules.Enforcers, ByDriver):
		what += ": its driver is to, and cannot; that takes R615 or newer, and cgroup v2"
	case slices.Contains(rules.Enforcers, ByDriver) && req.ComputePercent > 0:
		what = "nothing on this host keeps others off a share of a GPU's compute: its driver limits memory alone"
	}
	return problem.New(problem.GPUNotEnforceable, "%s", what).WithField(field).
		WithHint("use the mode mig or exclusive, or accept it: allow_unenforced (--gpu-allow-unenforced)")
}

// models counts the GPUs of the host by model.
func (b *Books) models() string {
	counts := make(map[string]int)
	var names []string
	for i := range b.Devices {
		name := cmp.Or(b.Devices[i].Model, string(b.Devices[i].Vendor))
		if counts[name]++; counts[name] == 1 {
			names = append(names, name)
		}
	}
	for i, name := range names {
		names[i] = fmt.Sprintf("%d × %s", counts[name], name)
	}
	return strings.Join(names, ", ")
}

func profiles(refused []refusal) string {
	var names []string
	for _, r := range refused {
		for _, p := range r.MIG.Profiles {
			if !slices.Contains(names, p.Name) {
				names = append(names, p.Name)
			}
		}
	}
	if len(names) == 0 {
		return "no profiles"
	}
	return strings.Join(names, ", ")
}

// holders names who has leases of a GPU.
func (a *account) holders() string {
	names := make([]string, 0, len(a.held))
	for _, l := range a.held {
		names = append(names, cmp.Or(l.EnvName, l.EnvID))
	}
	return strings.Join(names, ", ")
}

// instances says what is on a partitioned GPU.
func (a *account) instances() string {
	var names []string
	for _, l := range a.held {
		names = append(names, l.Profile+" of "+cmp.Or(l.EnvName, l.EnvID))
	}
	for _, p := range a.planned {
		if p.Remove {
			names = append(names, p.Profile+", which is to be removed")
		}
	}
	if len(names) == 0 {
		return ""
	}
	return " beside " + strings.Join(names, ", ")
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}

// short is a UUID as people read it.
func short(uuid string) string {
	if len(uuid) > 12 && strings.HasPrefix(uuid, "GPU-") {
		return uuid[:12]
	}
	return uuid
}

func mebibytes(bytes uint64) string { return fmt.Sprintf("%d MiB", bytes>>20) }
