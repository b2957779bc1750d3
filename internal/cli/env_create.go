package cli

import (
	"context"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// createFlags are the flags of env create, as written.
type createFlags struct {
	waiting
	image, pull, workdir, user, hostname     string
	snapshot                                 string
	cpus, memory, swap, shm, disk            string
	diskBestEffort                           bool
	pids                                     int64
	entrypoint, env, envFiles, labels, ports []string
	volumes, mounts, tmpfs, ulimits          []string
	desktop                                  string
	newPrivileges                            bool
	care                                     careFlags
	network                                  networkFlags
	gpu                                      gpuFlags
}

const createHelp = `create makes an environment and waits until it runs.

Ports: -p [HOSTPORT:][SERVICE:][PORT][/udp][=DESCRIPTION]. Services are ssh,
rdp, jupyter, vnc, novnc and custom; a port without a service is custom. The
node picks the host port from the service's pool unless HOSTPORT is given,
which stands first, as with docker.
  -p ssh                host port from the SSH pool to port 22
  -p jupyter:9999       Jupyter that listens on 9999 inside
  -p 8080=web           any port, with a description
  -p 15000:8080         host port 15000 to port 8080
  -p 22007:ssh          host port 22007 to port 22
  -p 15001:5353/udp     UDP
Behind commas: allow=NETWORK, a network or address that reaches it from outside,
once for each, of IPv6 where environments have that; expires=2h, 3d or a time
such as 2026-11-26T14:30:00+01:00, when it is withdrawn by itself;
description=TEXT.
  -p ssh,allow=203.0.113.0/24,allow=198.51.100.7,expires=48h

Mounts: -v SOURCE:TARGET[:ro]. A source with a leading slash is a path of the
node below one of its allowed roots; any other is a named volume, made when it
does not exist. --tmpfs TARGET[:size=SIZE][,ro] is memory. --mount takes what
has colons: --mount type=bind,source=/a:b,target=/data,readonly.

` + networkHelp + `

` + gpuHelp + `

` + careHelp + `

Sizes are ` + sizeHelp + `.`

func (a *app) envCreate() *cobra.Command {
	f := &createFlags{}
	cmd := &cobra.Command{
		Use:   "create NAME --image IMAGE|--from-snapshot SNAPSHOT [-- COMMAND [ARG...]]",
		Short: "Create an environment",
		Long:  createHelp,
		Example: `  remotegpu env create demo --image remotegpu/desktop-base --desktop -p ssh
  remotegpu env create train --image team/app:1.2 --cpus 4 --memory 16G -v data:/data -- python train.py`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 && cmd.Flags().Changed("desktop") && cmd.ArgsLenAtDash() < 0 && strings.Trim(args[1], "0123456789x") == "" {
				return usagef("--desktop="+args[1], "%q stands alone; the size of a desktop comes after =", args[1])
			}
			if dash := cmd.ArgsLenAtDash(); len(args) == 0 || dash == 0 || dash < 0 && len(args) > 1 || dash > 1 {
				return usagef("remotegpu env create NAME --image IMAGE [-- COMMAND [ARG...]]", "name one environment; a command comes after --")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			request, err := a.createRequest(f, cmd.Flags().Changed, args)
			if err != nil {
				return err
			}
			return a.create(cmd.Context(), f, request)
		},
	}
	f.register(cmd)
	a.complete(cmd, "pull", "missing", "always", "never")
	a.complete(cmd, "restart", "no", "on-failure", "always", "unless-stopped")
	a.complete(cmd, "egress", "open", "allow", "none")
	a.complete(cmd, "gpu-mode", "exclusive", "shared", "mig", "vgpu")
	a.complete(cmd, "publish", "ssh", "rdp", "jupyter", "vnc", "novnc", "custom:")
	a.completeWith(cmd, "image", a.completeImages)
	a.completeWith(cmd, "from-snapshot", a.completeSnapshots)
	return cmd
}

func (f *createFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	f.waiting.register(flags)
	f.care.register(flags)
	f.network.register(flags)
	f.gpu.register(flags)
	flags.StringVar(&f.image, "image", "", "image reference")
	flags.StringVar(&f.snapshot, "from-snapshot", "", "snapshot to make it from in place of an image: ENVIRONMENT/NAME, or an id")
	flags.StringVar(&f.pull, "pull", "missing", "when to pull the image: missing, always, never")
	flags.StringVar(&f.cpus, "cpus", "", "CPU time, in CPUs: 1.5; 0: no limit")
	flags.StringVarP(&f.memory, "memory", "m", "", "memory limit")
	flags.StringVar(&f.swap, "swap", "", "swap on top of memory (none when memory is limited)")
	flags.Int64Var(&f.pids, "pids", 0, "processes and threads; 0: the node's default, 4096")
	flags.StringVar(&f.disk, "disk", "", "size of the writable layer, such as 20G (no limit)")
	flags.BoolVar(&f.diskBestEffort, "disk-best-effort", false, "run without --disk being enforced where the node cannot")
	flags.StringVar(&f.shm, "shm-size", "", "size of /dev/shm; left out or 0: 512M with a desktop, 64M without")
	flags.StringArrayVar(&f.ulimits, "ulimit", nil, "NAME=SOFT[:HARD], for example nofile=1024:2048; -1: unlimited")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "variable NAME=VALUE; NAME alone takes it from here")
	flags.StringArrayVar(&f.envFiles, "env-file", nil, "file with variables, one per line")
	flags.StringArrayVarP(&f.labels, "label", "l", nil, "label KEY=VALUE")
	flags.StringArrayVarP(&f.ports, "publish", "p", nil, "publish a port, see above")
	flags.StringArrayVarP(&f.volumes, "volume", "v", nil, "mount a host path or a volume, see above")
	flags.StringArrayVar(&f.mounts, "mount", nil, "mount, as type=bind|volume|tmpfs,source=…,target=…[,readonly][,size=…]")
	flags.StringArrayVar(&f.tmpfs, "tmpfs", nil, "mount memory, see above")
	flags.StringVarP(&f.workdir, "workdir", "w", "", "working directory")
	flags.StringVarP(&f.user, "user", "u", "", "user, or user:group")
	flags.StringVar(&f.hostname, "hostname", "", "host name (default: the environment's name)")
	flags.StringArrayVar(&f.entrypoint, "entrypoint", nil, "replaces the image's entrypoint; repeat it for arguments")
	flags.StringVar(&f.desktop, "desktop", "", "offer the image's desktop in the browser: --desktop or --desktop=WIDTHxHEIGHT[xDEPTH]")
	flags.Lookup("desktop").NoOptDefVal = "default"
	flags.BoolVar(&f.newPrivileges, "allow-new-privileges", false, "let setuid programs such as sudo gain privileges inside")
}

// createRequest reads the flags. changed says whether a flag was given.
func (a *app) createRequest(f *createFlags, changed func(string) bool, args []string) (*remotegpuv1.CreateEnvironmentRequest, error) {
	if f.image == "" && f.snapshot == "" {
		return nil, usagef("remotegpu image ls lists those the node has", "no image is named: --image is missing")
	}
	if f.image != "" && f.snapshot != "" {
		return nil, usagef("leave --image out: a snapshot has an image", "--image and --from-snapshot are both given")
	}
	pull, ok := map[string]remotegpuv1.PullPolicy{
		"missing": remotegpuv1.PullPolicy_PULL_POLICY_IF_NOT_PRESENT,
		"always":  remotegpuv1.PullPolicy_PULL_POLICY_ALWAYS,
		"never":   remotegpuv1.PullPolicy_PULL_POLICY_NEVER,
	}[f.pull]
	if !ok {
		return nil, usagef("use missing, always or never", "pull policy %q is not one", f.pull)
	}
	spec := &remotegpuv1.EnvironmentSpec{
		Image: f.image, Snapshot: f.snapshot, PullPolicy: pull, Entrypoint: f.entrypoint, Command: args[1:],
		Workdir: f.workdir, User: f.user, Hostname: f.hostname, AllowNewPrivileges: f.newPrivileges,
	}
	request := &remotegpuv1.CreateEnvironmentRequest{RequestId: f.id(), Name: args[0], Project: a.project, Spec: spec}
	var err error
	if request.Labels, err = keyValues("label", f.labels); err != nil {
		return nil, err
	}
	if spec.Env, err = a.variables(f.env, f.envFiles); err != nil {
		return nil, err
	}
	if spec.Resources, err = f.resources(changed); err != nil {
		return nil, err
	}
	if spec.Mounts, err = f.mountRequests(); err != nil {
		return nil, err
	}
	for _, text := range f.ports {
		port, err := parsePort(text, time.Now())
		if err != nil {
			return nil, err
		}
		spec.Ports = append(spec.Ports, port)
	}
	if changed("desktop") {
		if spec.Desktop, err = parseDesktop(nil, f.desktop); err != nil {
			return nil, err
		}
	}
	if spec.Restart, err = f.care.restartPolicy(nil, changed); err != nil {
		return nil, err
	}
	if spec.HealthCheck, err = f.care.healthCheck(nil, changed); err != nil {
		return nil, err
	}
	if spec.Network, err = f.network.apply(nil, changed); err != nil {
		return nil, err
	}
	if spec.Gpu, err = f.gpu.apply(nil, changed); err != nil {
		return nil, err
	}
	return request, nil
}

func (f *createFlags) resources(changed func(string) bool) (*remotegpuv1.Resources, error) {
	r := &remotegpuv1.Resources{Pids: f.pids, DiskBestEffort: f.diskBestEffort}
	if changed("cpus") {
		cpus, err := strconv.ParseFloat(f.cpus, 64)
		if err != nil || math.IsNaN(cpus) || cpus < 0.01 && cpus != 0 || cpus > 4096 {
			return nil, usagef("write a number such as 1.5, or 0 for no limit", "--cpus %q is neither 0 nor a number between 0.01 and 4096", f.cpus)
		}
		r.CpuMillis = int64(math.Round(cpus * 1000))
	}
	for _, limit := range []struct {
		flag, text string
		into       *int64
	}{{"memory", f.memory, &r.MemoryBytes}, {"shm-size", f.shm, &r.ShmBytes}, {"disk", f.disk, &r.DiskBytes}} {
		if changed(limit.flag) {
			bytes, err := parseSize("--"+limit.flag, limit.text)
			if err != nil {
				return nil, err
			}
			*limit.into = bytes
		}
	}
	if changed("swap") {
		bytes, err := parseSize("--swap", f.swap)
		if err != nil {
			return nil, err
		}
		r.SwapBytes = &bytes
	}
	for _, text := range f.ulimits {
		limit, err := parseUlimit(text)
		if err != nil {
			return nil, err
		}
		r.Ulimits = append(r.Ulimits, limit)
	}
	return r, nil
}

func (a *app) create(ctx context.Context, f *createFlags, request *remotegpuv1.CreateEnvironmentRequest) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	response, err := c.environments.CreateEnvironment(ctx, request)
	if err != nil {
		return err
	}
	return a.created(ctx, c, &f.waiting, response)
}

// created waits for an environment that is being made, and shows it.
func (a *app) created(ctx context.Context, c *clients, w *waiting, response *remotegpuv1.CreateEnvironmentResponse) (err error) {
	e := response.GetEnvironment()
	if _, err := a.await(ctx, c, w, response.GetOperation()); err != nil {
		return err
	}
	if !w.noWait {
		if e, err = a.environment(ctx, c, e.GetId()); err != nil {
			return err
		}
		if err := died(e); err != nil {
			return err
		}
	}
	return a.showEnvironment(e)
}

func parseUlimit(text string) (*remotegpuv1.Ulimit, error) {
	name, values, ok := strings.Cut(text, "=")
	soft, hard, two := strings.Cut(values, ":")
	if !two {
		hard = soft
	}
	limit := &remotegpuv1.Ulimit{Name: name}
	for _, value := range []struct {
		text string
		into *int64
	}{{soft, &limit.Soft}, {hard, &limit.Hard}} {
		number, err := strconv.ParseInt(value.text, 10, 64)
		if value.text == "unlimited" {
			number, err = -1, nil
		}
		if err != nil || number < -1 || !ok || name == "" {
			return nil, usagef("write NAME=SOFT[:HARD], for example nofile=1024:2048", "ulimit %q is not one", text)
		}
		*value.into = number
	}
	return limit, nil
}

// parseDesktop reads WIDTHxHEIGHT[xDEPTH] or "default". What is not said is as
// before, and the node's to choose where there was no desktop.
func parseDesktop(before *remotegpuv1.Desktop, text string) (*remotegpuv1.Desktop, error) {
	desktop := &remotegpuv1.Desktop{}
	if before != nil {
		desktop = proto.CloneOf(before)
	}
	if text == "default" {
		return desktop, nil
	}
	numbers := strings.Split(text, "x")
	into := []*int32{&desktop.Width, &desktop.Height, &desktop.Depth}
	if len(numbers) < 2 || len(numbers) > len(into) {
		numbers = []string{""}
	}
	for i, number := range numbers {
		value, err := strconv.ParseInt(number, 10, 32)
		if err != nil || value <= 0 {
			return nil, usagef("write --desktop=1920x1080 or --desktop=1920x1080x24", "desktop size %q is not one", text)
		}
		*into[i] = int32(value)
	}
	return desktop, nil
}
