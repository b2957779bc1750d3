package cli

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// sayRestartNeeded tells what a running environment does not have yet.
func (a *app) sayRestartNeeded(name string, fields []string) {
	if len(fields) > 0 {
		a.say("in force when it is started the next time (remotegpu env restart %s): %s", name, strings.Join(fields, ", "))
	}
}

// updateFlags are the flags of env update: those of env create, and what
// removes things.
type updateFlags struct {
	createFlags
	grace
	etag                                string
	unlabel, unset, unpublish, unmount  []string
	disallow, ungroup                   []string
	noDesktop, noHealth, noUlimits, now bool
	noGPUs                              bool

	added map[string]string // variables, read once: a file may be a pipe
	stays string            // what to say of destinations that are allowed as before
}

// ofTheImage are the flags of env create that say what the writable layer is
// made on: that stays.
var ofTheImage = []string{"image", "pull", "from-snapshot"}

const updateHelp = `update changes what is named and leaves the rest, also within a health check,
a restart policy, a desktop and GPUs: --health-interval 5s keeps what is
checked, --restart always keeps whether what is unhealthy is restarted
(--restart-unhealthy=false ends that). Limits, labels, ports, the
network policy, the restart policy and the health check are in force at once.
Everything else is when the environment is started the next time: --now restarts
it for that, and starts it when it is in error; a stopped one stays so. Its
files, address and remaining host ports are kept.

Labels, variables, ulimits, ports, mounts, allowed destinations and groups are
added to those there are; a mount replaces the one at its target. --unlabel,
--unset-env, --no-ulimits, --unpublish (HOSTPORT or SERVICE), --unmount,
--disallow and --ungroup take away; nothing in place of a value is a value for
labels and variables (-e MODE=), and the default again for --user, --workdir,
--hostname, --entrypoint and --restart. --cpus 0, --memory 0, --bandwidth-in 0 and
--bandwidth-out 0 take the limit away; --egress none takes all allowed
destinations away. With another --egress those that are not taken away stay
allowed: with open they open what is closed otherwise. A command comes after --.

GPUs change when there is no process: at once while it is stopped, else with its
next start. --no-gpus gives them back.

Ports, mounts, GPUs, restart policies and health checks are written as for env
create; see remotegpu env create --help.`

func (a *app) envUpdate() *cobra.Command {
	f := &updateFlags{}
	cmd := &cobra.Command{
		Use: "update NAME [-- COMMAND [ARG...]]", Short: "Change limits, labels, ports, mounts and the rest of environments",
		Long: updateHelp, ValidArgsFunction: a.completeEnvs,
		Example: `  remotegpu env update demo --memory 16G --cpus 4
  remotegpu env update demo -p 8080 --unpublish ssh -l team=vision
  remotegpu env update demo -e MODE=fast -v data:/data --now`,
		Args: func(cmd *cobra.Command, args []string) error {
			if dash := cmd.ArgsLenAtDash(); len(args) == 0 || dash == 0 || dash < 0 && len(args) > 1 || dash > 1 {
				return usagef("remotegpu env update NAME [flags] [-- COMMAND [ARG...]]", "name one environment; a command comes after --")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.update(cmd.Context(), f, cmd.Flags().Changed, args)
		},
	}
	f.register(cmd)
	a.complete(cmd, "restart", "no", "on-failure", "always", "unless-stopped")
	a.complete(cmd, "egress", "open", "allow", "none")
	a.complete(cmd, "gpu-mode", "exclusive", "shared", "mig", "vgpu")
	a.complete(cmd, "publish", "ssh", "rdp", "jupyter", "vnc", "novnc", "custom:")
	return cmd
}

func (f *updateFlags) register(cmd *cobra.Command) {
	f.createFlags.register(cmd)
	flags := cmd.Flags()
	for _, name := range ofTheImage {
		_ = flags.MarkHidden(name)
	}
	flags.StringArrayVar(&f.unlabel, "unlabel", nil, "take a label away, by its key")
	flags.StringArrayVar(&f.unset, "unset-env", nil, "take a variable away, by its name")
	flags.StringArrayVar(&f.unpublish, "unpublish", nil, "give a port back: HOSTPORT, or SERVICE for all of it")
	flags.StringArrayVar(&f.unmount, "unmount", nil, "take a mount away, by its target")
	flags.StringArrayVar(&f.disallow, "disallow", nil, "take an allowed destination away, as it was written for --allow")
	flags.StringArrayVar(&f.ungroup, "ungroup", nil, "take it out of a group")
	flags.BoolVar(&f.noDesktop, "no-desktop", false, "offer no desktop any more")
	flags.BoolVar(&f.noGPUs, "no-gpus", false, "give its GPUs back")
	flags.BoolVar(&f.noHealth, "no-health", false, "check its health no more")
	flags.BoolVar(&f.noUlimits, "no-ulimits", false, "take all ulimits away")
	flags.BoolVar(&f.now, "now", false, "restart it if a change needs that, start it if it is in error")
	f.grace.register(flags)
	etagFlag(flags, &f.etag)
}

func (a *app) update(ctx context.Context, f *updateFlags, changed func(string) bool, args []string) error {
	if slices.ContainsFunc(ofTheImage, changed) {
		return usagef("create another environment, or give this one the files of a snapshot of it: remotegpu env snapshot rollback",
			"the image of an environment cannot be changed: its files are made on it")
	}
	var err error
	if f.added, err = a.variables(f.env, f.envFiles); err != nil {
		return err
	}
	c, err := a.dial()
	if err != nil {
		return err
	}
	e, response, err := a.sendUpdate(ctx, c, f, changed, args)
	if err != nil {
		return err
	}
	op := response.GetOperation()
	if _, err := a.await(ctx, c, &f.waiting, op); err != nil {
		return err
	}
	if !f.noWait {
		if e, err = a.environment(ctx, c, e.GetId()); err != nil {
			return err
		}
		if f.now {
			if err := died(e); err != nil {
				return err
			}
		}
	}
	if f.stays != "" {
		a.say("Warning: %s", f.stays)
	}
	a.sayRestartNeeded(e.GetName(), response.GetRestartNeeded())
	if !f.now && e.GetState() == remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_ERROR {
		a.say("it is in error; start it: remotegpu env start %s", e.GetName())
	}
	if a.output == "json" {
		return a.json(e)
	}
	switch {
	case op == nil:
		return a.printf("%s: nothing to do\n", args[0])
	case f.noWait:
		return a.printf("%s: operation %s\n", args[0], op.GetId())
	}
	return a.printf("%s: updated\n", args[0])
}

// sendUpdate changes the environment as it is. What changed between reading and
// asking, such as its health, is not the caller's concern: it is read once more,
// unless the caller named the etag that it is to have.
func (a *app) sendUpdate(ctx context.Context, c *clients, f *updateFlags, changed func(string) bool, args []string) (
	*remotegpuv1.Environment, *remotegpuv1.UpdateEnvironmentResponse, error,
) {
	name := args[0]
	for again := false; ; again = true {
		e, err := a.environment(ctx, c, name)
		if err != nil {
			return nil, nil, err
		}
		request, err := a.updateRequest(f, e, changed, args[1:])
		if err != nil {
			return nil, nil, err
		}
		response, err := c.environments.UpdateEnvironment(ctx, request)
		if err == nil {
			return e, response, nil
		}
		if again || f.etag != "" || a.explain(ctx, err).Reason != "ETAG_MISMATCH" {
			return nil, nil, err
		}
		name = e.GetId() // its name may be another one's by now
	}
}

// updateMask names the fields that a request changes.
type updateMask struct {
	paths  []string
	merged bool // some have what the environment had
}

// set is for a field that the flags say alone.
func (m *updateMask) set(path string) { m.paths = append(m.paths, path) }

// merge is for a field that has, besides what the flags say, what the
// environment had.
func (m *updateMask) merge(path string) {
	m.set(path)
	m.merged = true
}

// updateRequest reads the flags. What they do not say of a field is as the
// environment has it: its etag makes sure of that. Without any, repeating the
// command is the same request.
func (a *app) updateRequest(f *updateFlags, e *remotegpuv1.Environment, changed func(string) bool, command []string) (*remotegpuv1.UpdateEnvironmentRequest, error) {
	request := &remotegpuv1.UpdateEnvironmentRequest{
		RequestId: f.id(), Environment: e.GetId(), Project: a.project, Etag: f.etag,
		Spec: &remotegpuv1.EnvironmentSpec{}, Restart: f.now, Timeout: f.duration(),
	}
	mask := &updateMask{}
	if changed("label") || len(f.unlabel) > 0 {
		mask.merge("labels")
		added, err := keyValues("label", f.labels)
		if err != nil {
			return nil, err
		}
		if request.Labels, err = merged("label", e.GetLabels(), added, f.unlabel); err != nil {
			return nil, err
		}
	}
	for _, part := range []func(*remotegpuv1.EnvironmentSpec, *remotegpuv1.Environment, func(string) bool, *updateMask) error{
		f.setResources, f.setLists, f.setCare, f.setDesktop, f.setNetwork, f.setGPUs,
	} {
		if err := part(request.GetSpec(), e, changed, mask); err != nil {
			return nil, err
		}
	}
	spec := request.GetSpec()
	for _, word := range []struct {
		flag, path, value string
		into              *string
	}{
		{"workdir", "spec.workdir", f.workdir, &spec.Workdir},
		{"user", "spec.user", f.user, &spec.User},
		{"hostname", "spec.hostname", f.hostname, &spec.Hostname},
	} {
		if changed(word.flag) {
			mask.set(word.path)
			*word.into = word.value
		}
	}
	if changed("entrypoint") {
		mask.set("spec.entrypoint")
		spec.Entrypoint = slices.DeleteFunc(f.entrypoint, func(word string) bool { return word == "" })
	}
	if len(command) > 0 {
		mask.set("spec.command")
		spec.Command = command
	}
	if changed("allow-new-privileges") {
		mask.set("spec.allow_new_privileges")
		spec.AllowNewPrivileges = f.newPrivileges
	}
	request.UpdateMask = &fieldmaskpb.FieldMask{Paths: mask.paths}
	if mask.merged {
		request.Etag = orElse(f.etag, e.GetEtag())
	}
	if len(mask.paths) == 0 && !f.now {
		return nil, usagef("remotegpu env update --help lists what can be changed", "nothing is to be changed")
	}
	return request, nil
}

func (f *updateFlags) setResources(spec *remotegpuv1.EnvironmentSpec, e *remotegpuv1.Environment, changed func(string) bool, mask *updateMask) error {
	var err error
	if spec.Resources, err = f.resources(changed); err != nil {
		return err
	}
	for _, limit := range []struct{ flag, field string }{
		{"cpus", "cpu_millis"},
		{"memory", "memory_bytes"},
		{"swap", "swap_bytes"},
		{"pids", "pids"},
		{"shm-size", "shm_bytes"},
		{"disk", "disk_bytes"},
		{"disk-best-effort", "disk_best_effort"},
	} {
		if changed(limit.flag) {
			mask.set("spec.resources." + limit.field)
		}
	}
	if changed("memory") && spec.GetResources().GetMemoryBytes() == 0 && !changed("swap") {
		mask.set("spec.resources.swap_bytes") // without a limit of memory swap has none
	}
	if changed("disk") && spec.GetResources().GetDiskBytes() == 0 && !changed("disk-best-effort") {
		mask.set("spec.resources.disk_best_effort") // nor is there anything to do one's best about
	}
	switch {
	case f.noUlimits:
		mask.set("spec.resources.ulimits")
	case changed("ulimit"):
		mask.merge("spec.resources.ulimits")
		spec.Resources.Ulimits = mergedUlimits(e.GetSpec().GetResources().GetUlimits(), spec.GetResources().GetUlimits())
	}
	return nil
}

// setLists sets what is added to and taken away from.
func (f *updateFlags) setLists(spec *remotegpuv1.EnvironmentSpec, e *remotegpuv1.Environment, changed func(string) bool, mask *updateMask) error {
	if changed("env") || changed("env-file") || len(f.unset) > 0 {
		mask.merge("spec.env")
		var err error
		if spec.Env, err = merged("variable", e.GetSpec().GetEnv(), f.added, f.unset); err != nil {
			return err
		}
	}
	mounts, err := f.mountRequests()
	if err != nil {
		return err
	}
	if len(mounts) > 0 || len(f.unmount) > 0 {
		mask.merge("spec.mounts")
		if spec.Mounts, err = f.mountsOf(e, mounts); err != nil {
			return err
		}
	}
	if len(f.ports) > 0 || len(f.unpublish) > 0 {
		mask.merge("spec.ports")
		if spec.Ports, err = f.portsOf(e); err != nil {
			return err
		}
	}
	return nil
}

func (f *updateFlags) setCare(spec *remotegpuv1.EnvironmentSpec, e *remotegpuv1.Environment, changed func(string) bool, mask *updateMask) error {
	policy, err := f.care.restartPolicy(e.GetSpec().GetRestart(), changed)
	if err != nil {
		return err
	}
	switch mode, unhealthy := changed("restart"), changed("restart-unhealthy"); {
	case mode && unhealthy:
		mask.set("spec.restart")
		spec.Restart = policy
	case mode || unhealthy:
		mask.merge("spec.restart")
		spec.Restart = policy
	}
	if !slices.ContainsFunc(append(healthKinds(), healthTimes()...), changed) {
		if f.noHealth {
			mask.set("spec.health_check")
		}
	} else {
		if f.noHealth {
			return usagef("leave one of them out", "--no-health and a health check exclude each other")
		}
		mask.merge("spec.health_check")
		if spec.HealthCheck, err = f.care.healthCheck(e.GetSpec().GetHealthCheck(), changed); err != nil {
			return err
		}
	}
	if f.noHealth && policy.GetOnUnhealthy() {
		return usagef("add --restart-unhealthy=false", "it is restarted when its health check fails: without one nothing is found unhealthy")
	}
	return nil
}

func (f *updateFlags) setDesktop(spec *remotegpuv1.EnvironmentSpec, e *remotegpuv1.Environment, changed func(string) bool, mask *updateMask) error {
	if !changed("desktop") && !f.noDesktop {
		return nil
	}
	if changed("desktop") && f.noDesktop {
		return usagef("leave one of them out", "--desktop and --no-desktop exclude each other")
	}
	if f.noDesktop {
		mask.set("spec.desktop")
		return nil
	}
	mask.merge("spec.desktop")
	var err error
	spec.Desktop, err = parseDesktop(e.GetSpec().GetDesktop(), f.desktop)
	return err
}

// setNetwork sets the whole policy: what there is, changed.
func (f *updateFlags) setNetwork(spec *remotegpuv1.EnvironmentSpec, e *remotegpuv1.Environment, changed func(string) bool, mask *updateMask) error {
	if !f.network.set(changed) && len(f.disallow)+len(f.ungroup) == 0 {
		return nil
	}
	mask.merge("spec.network")
	policy := proto.CloneOf(e.GetSpec().GetNetwork())
	if policy == nil {
		policy = &remotegpuv1.NetworkPolicy{}
	}
	if err := withoutNetwork(policy, f.disallow, f.ungroup); err != nil {
		return err
	}
	before, stays := policy.GetEgress(), len(policy.GetAllow())
	var err error
	if spec.Network, err = f.network.apply(policy, changed); err == nil {
		f.stays = stayingAllowed(spec.GetNetwork(), before, stays)
	}
	return err
}
