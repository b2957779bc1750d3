package cli

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) envRename() *cobra.Command {
	request := &remotegpuv1.RenameEnvironmentRequest{}
	cmd := &cobra.Command{
		Use: "rename NAME NEWNAME", Short: "Give an environment another name", Args: cobra.ExactArgs(2), ValidArgsFunction: a.completeEnvs,
		Long: `rename gives an environment another name. Its host name follows when it is
started the next time, unless it was created with one of its own.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			request.Environment, request.Name, request.Project = args[0], args[1], a.project
			response, err := c.environments.RenameEnvironment(cmd.Context(), request)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(response.GetEnvironment())
			}
			a.sayRestartNeeded(response.GetEnvironment().GetName(), response.GetEnvironment().GetRestartNeeded())
			return a.printf("%s: renamed to %s\n", args[0], response.GetEnvironment().GetName())
		},
	}
	etagFlag(cmd.Flags(), &request.Etag)
	return cmd
}

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

	stays string // what to say of destinations that are allowed as before
}

// ofTheImage are the flags of env create that say what the writable layer is
// made on: that stays.
var ofTheImage = []string{"image", "pull", "from-snapshot"}

const updateHelp = `update changes what is named and leaves the rest. Limits, labels, ports, the
network policy, the restart policy and the health check are in force at once.
Everything else is when the environment is started the next time: --now restarts
it for that, and starts it when it is in error; a stopped one stays so. Its
files, address and remaining host ports are kept.

Labels, variables, ports, mounts, allowed destinations and groups are added to
those there are; a mount replaces the one at its target. --unlabel,
--unset-env, --unpublish (HOSTPORT or SERVICE), --unmount, --disallow and
--ungroup take away. --cpus 0, --memory 0, --bandwidth-in 0 and
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
	c, err := a.dial()
	if err != nil {
		return err
	}
	e, err := a.environment(ctx, c, args[0])
	if err != nil {
		return err
	}
	request, err := a.updateRequest(f, e, changed, args[1:])
	if err != nil {
		return err
	}
	response, err := c.environments.UpdateEnvironment(ctx, request)
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

// updateRequest reads the flags. What is added to or taken away from lists is
// so from those that the environment has: its etag makes sure of that. Without
// any, repeating the command is the same request.
func (a *app) updateRequest(f *updateFlags, e *remotegpuv1.Environment, changed func(string) bool, command []string) (*remotegpuv1.UpdateEnvironmentRequest, error) {
	request := &remotegpuv1.UpdateEnvironmentRequest{
		RequestId: f.id(), Environment: e.GetId(), Project: a.project, Etag: f.etag,
		Spec: &remotegpuv1.EnvironmentSpec{}, UpdateMask: &fieldmaskpb.FieldMask{}, Restart: f.now, Timeout: f.duration(),
	}
	set := func(path string) { request.UpdateMask.Paths = append(request.UpdateMask.Paths, path) }
	if changed("label") || len(f.unlabel) > 0 {
		set("labels")
		added, err := keyValues("label", f.labels)
		if err != nil {
			return nil, err
		}
		if request.Labels, err = merged("label", e.GetLabels(), added, f.unlabel); err != nil {
			return nil, err
		}
	}
	for _, part := range []func(*remotegpuv1.EnvironmentSpec, *remotegpuv1.Environment, func(string) bool, func(string)) error{
		f.setResources, f.setLists(a), f.setCare, f.setDesktop, f.setNetwork, f.setGPUs,
	} {
		if err := part(request.GetSpec(), e, changed, set); err != nil {
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
			set(word.path)
			*word.into = word.value
		}
	}
	if changed("entrypoint") {
		set("spec.entrypoint")
		spec.Entrypoint = slices.DeleteFunc(f.entrypoint, func(word string) bool { return word == "" })
	}
	if len(command) > 0 {
		set("spec.command")
		spec.Command = command
	}
	if changed("allow-new-privileges") {
		set("spec.allow_new_privileges")
		spec.AllowNewPrivileges = f.newPrivileges
	}
	if slices.ContainsFunc(request.GetUpdateMask().GetPaths(), func(path string) bool {
		return slices.Contains([]string{"labels", "spec.env", "spec.mounts", "spec.ports", "spec.network", "spec.gpu"}, path)
	}) {
		request.Etag = orElse(f.etag, e.GetEtag())
	}
	if len(request.GetUpdateMask().GetPaths()) == 0 && !f.now {
		return nil, usagef("remotegpu env update --help lists what can be changed", "nothing is to be changed")
	}
	return request, nil
}

func (f *updateFlags) setResources(spec *remotegpuv1.EnvironmentSpec, _ *remotegpuv1.Environment, changed func(string) bool, set func(string)) error {
	limited := func(flag string) bool { return changed(flag) && (flag != "cpus" || f.cpus != "0") }
	var err error
	if spec.Resources, err = f.resources(limited); err != nil {
		return err
	}
	for _, limit := range []struct{ flag, field string }{
		{"cpus", "cpu_millis"},
		{"memory", "memory_bytes"},
		{"swap", "swap_bytes"},
		{"pids", "pids"},
		{"shm-size", "shm_bytes"},
		{"ulimit", "ulimits"},
		{"disk", "disk_bytes"},
		{"disk-best-effort", "disk_best_effort"},
	} {
		if changed(limit.flag) || limit.flag == "ulimit" && f.noUlimits {
			set("spec.resources." + limit.field)
		}
	}
	if changed("memory") && spec.GetResources().GetMemoryBytes() == 0 && !changed("swap") {
		set("spec.resources.swap_bytes") // without a limit of memory swap has none
	}
	return nil
}

// setLists sets what is added to and taken away from.
func (f *updateFlags) setLists(a *app) func(*remotegpuv1.EnvironmentSpec, *remotegpuv1.Environment, func(string) bool, func(string)) error {
	return func(spec *remotegpuv1.EnvironmentSpec, e *remotegpuv1.Environment, changed func(string) bool, set func(string)) error {
		if changed("env") || changed("env-file") || len(f.unset) > 0 {
			set("spec.env")
			added, err := a.variables(f.env, f.envFiles)
			if err != nil {
				return err
			}
			if spec.Env, err = merged("variable", e.GetSpec().GetEnv(), added, f.unset); err != nil {
				return err
			}
		}
		mounts, err := f.mountRequests()
		if err != nil {
			return err
		}
		if len(mounts) > 0 || len(f.unmount) > 0 {
			set("spec.mounts")
			if spec.Mounts, err = f.mountsOf(e, mounts); err != nil {
				return err
			}
		}
		if len(f.ports) > 0 || len(f.unpublish) > 0 {
			set("spec.ports")
			if spec.Ports, err = f.portsOf(e); err != nil {
				return err
			}
		}
		return nil
	}
}

func (f *updateFlags) setCare(spec *remotegpuv1.EnvironmentSpec, _ *remotegpuv1.Environment, changed func(string) bool, set func(string)) error {
	policy, err := f.care.restartPolicy()
	if err != nil {
		return err
	}
	if changed("restart") {
		set("spec.restart")
		spec.Restart = policy
	}
	check, err := f.care.healthCheck(changed)
	if err != nil {
		return err
	}
	if check != nil && f.noHealth {
		return usagef("leave one of them out", "--no-health and a health check exclude each other")
	}
	if check != nil || f.noHealth {
		set("spec.health_check")
		spec.HealthCheck = check
	}
	return nil
}

func (f *updateFlags) setDesktop(spec *remotegpuv1.EnvironmentSpec, _ *remotegpuv1.Environment, changed func(string) bool, set func(string)) error {
	if !changed("desktop") && !f.noDesktop {
		return nil
	}
	if changed("desktop") && f.noDesktop {
		return usagef("leave one of them out", "--desktop and --no-desktop exclude each other")
	}
	set("spec.desktop")
	if f.noDesktop {
		return nil
	}
	var err error
	spec.Desktop, err = parseDesktop(f.desktop)
	return err
}

// setNetwork sets the whole policy: what there is, changed.
func (f *updateFlags) setNetwork(spec *remotegpuv1.EnvironmentSpec, e *remotegpuv1.Environment, changed func(string) bool, set func(string)) error {
	if !f.network.set(changed) && len(f.disallow)+len(f.ungroup) == 0 {
		return nil
	}
	set("spec.network")
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

// merged are the pairs there are, with some more and without others.
func merged(what string, there, added map[string]string, removed []string) (map[string]string, error) {
	all := make(map[string]string, len(there)+len(added))
	maps.Copy(all, there)
	for _, key := range removed {
		if _, found := all[key]; !found {
			return nil, usagef("remotegpu env get shows those it has", "there is no %s %q", what, key)
		}
		delete(all, key)
	}
	maps.Copy(all, added)
	return all, nil
}

// mountsOf are the mounts there are, with more and without others.
func (f *updateFlags) mountsOf(e *remotegpuv1.Environment, added []*remotegpuv1.Mount) ([]*remotegpuv1.Mount, error) {
	all := slices.Clone(e.GetSpec().GetMounts())
	take := func(target string) bool {
		before := len(all)
		all = slices.DeleteFunc(all, func(m *remotegpuv1.Mount) bool { return m.GetTarget() == target })
		return len(all) < before
	}
	for _, target := range f.unmount {
		if !take(target) {
			return nil, usagef("remotegpu env get shows those it has", "nothing is mounted at %q", target)
		}
	}
	for _, mount := range added {
		take(mount.GetTarget())
	}
	return append(all, added...), nil
}

// portsOf are the ports there are, with more and without others. Those that
// stay are asked for by their host port, so that no other goes in their place.
func (f *updateFlags) portsOf(e *remotegpuv1.Environment) ([]*remotegpuv1.PortRequest, error) {
	all := slices.Clone(e.GetSpec().GetPorts())
	if len(f.unpublish) > 0 {
		held := slices.Clone(e.GetPortMappings())
		for _, word := range f.unpublish {
			host, err := strconv.ParseUint(word, 10, 16)
			before := len(held)
			held = slices.DeleteFunc(held, func(m *remotegpuv1.PortMapping) bool {
				return err == nil && m.GetExternalPort() == int32(host) || err != nil && state(m.GetServiceType(), "SERVICE_TYPE_") == word
			})
			if len(held) == before {
				return nil, usagef("name a host port or a service: remotegpu env get shows those it has", "port %q is not published", word)
			}
		}
		all = nil
		for _, m := range held {
			all = append(all, &remotegpuv1.PortRequest{
				ServiceType: m.GetServiceType(), InternalPort: m.GetInternalPort(), ExternalPort: m.GetExternalPort(),
				Protocol: m.GetProtocol(), Description: m.GetDescription(), AllowedSources: m.GetAllowedSources(), ExpiresAt: m.GetExpiresAt(),
			})
		}
	}
	for _, text := range f.ports {
		port, err := parsePort(text, time.Now())
		if err != nil {
			return nil, err
		}
		all = append(all, port)
	}
	return all, nil
}
