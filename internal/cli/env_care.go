package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// careFlags say how an environment is kept alive, as written.
type careFlags struct {
	restart                       string
	onUnhealthy                   bool
	command                       []string
	tcp                           int32
	http                          string
	desktop                       bool
	interval, timeout, startAfter time.Duration
	retries                       int32
}

const careHelp = `Restarts: --restart no, on-failure, on-failure:N (at most N times), always or
unless-stopped. The node waits 100 ms before the first restart, doubled each
time up to a minute; ten minutes of running forget the count. What somebody
stopped stays stopped. --restart-unhealthy restarts also what its health check
finds unhealthy.

Health checks: one of --health-cmd, --health-tcp, --health-http and
--health-desktop. No shell is involved: repeat --health-cmd for arguments, as
in --health-cmd sh --health-cmd -c --health-cmd 'test -e /ready'. Ports are
asked at the environment's address; what listens on 127.0.0.1 inside is not
seen.`

func (f *careFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.restart, "restart", "", "start again when the process ends: no, on-failure[:N], always, unless-stopped")
	flags.BoolVar(&f.onUnhealthy, "restart-unhealthy", false, "restart also when the health check fails; needs --restart")
	flags.StringArrayVar(&f.command, "health-cmd", nil, "program that ends with 0 when all is well; repeat it for arguments")
	flags.Int32Var(&f.tcp, "health-tcp", 0, "port inside that accepts connections when all is well")
	flags.StringVar(&f.http, "health-http", "", "PORT[/path] that answers with a status below 400 when all is well")
	flags.BoolVar(&f.desktop, "health-desktop", false, "all is well when the desktop has drawn once and can be connected to")
	flags.DurationVar(&f.interval, "health-interval", 0, "time between checks (default 30s)")
	flags.DurationVar(&f.timeout, "health-timeout", 0, "time that a check may take, at most 1m (default 10s)")
	flags.Int32Var(&f.retries, "health-retries", 0, "failures one after another that mean unhealthy (default 3)")
	flags.DurationVar(&f.startAfter, "health-start-period", 0, "time after a start in which failures do not count")
}

// restartPolicy changes a policy as the flags say. --restart names mode and
// number together; what is named neither way stays. Without a policy it makes
// one, and leaves it out where no flag was given.
func (f *careFlags) restartPolicy(before *remotegpuv1.RestartPolicy, changed func(string) bool) (*remotegpuv1.RestartPolicy, error) {
	policy := &remotegpuv1.RestartPolicy{}
	if before != nil {
		policy = proto.CloneOf(before)
	}
	if changed("restart") {
		mode, most, err := parseRestart(f.restart)
		if err != nil {
			return nil, err
		}
		if policy.Mode, policy.MaxRetries = mode, most; !restarts(policy) {
			policy.OnUnhealthy = false // it has nothing to say of what is never restarted
		}
	}
	if changed("restart-unhealthy") {
		policy.OnUnhealthy = f.onUnhealthy
	}
	switch {
	case policy.GetOnUnhealthy() && !restarts(policy):
		return nil, usagef("add --restart on-failure", "--restart-unhealthy needs a restart policy")
	case policy.GetMode() == remotegpuv1.RestartMode_RESTART_MODE_UNSPECIFIED:
		return nil, nil
	}
	return policy, nil
}

func restarts(policy *remotegpuv1.RestartPolicy) bool {
	return policy.GetMode() != remotegpuv1.RestartMode_RESTART_MODE_NO && policy.GetMode() != remotegpuv1.RestartMode_RESTART_MODE_UNSPECIFIED
}

// parseRestart reads a mode and the number of on-failure. Nothing is no policy.
func parseRestart(text string) (remotegpuv1.RestartMode, int32, error) {
	name, number, counted := strings.Cut(text, ":")
	mode := remotegpuv1.RestartMode(remotegpuv1.RestartMode_value["RESTART_MODE_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))])
	if mode == remotegpuv1.RestartMode_RESTART_MODE_UNSPECIFIED && text != "" {
		return 0, 0, usagef("use no, on-failure, on-failure:N, always or unless-stopped", "restart policy %q is not one", text)
	}
	if !counted {
		return mode, 0, nil
	}
	most, err := strconv.ParseInt(number, 10, 32)
	if err != nil || most < 1 || mode != remotegpuv1.RestartMode_RESTART_MODE_ON_FAILURE {
		return 0, 0, usagef("only on-failure takes a number, for example on-failure:5", "restart policy %q is not one", text)
	}
	return mode, int32(most), nil
}

// healthKinds and healthTimes are the flags that say what a health check is,
// and when it is made.
func healthKinds() []string {
	return []string{"health-cmd", "health-tcp", "health-http", "health-desktop"}
}

func healthTimes() []string {
	return []string{"health-interval", "health-timeout", "health-retries", "health-start-period"}
}

// healthCheck changes a check as the flags say: what no flag names stays.
// Without a check it makes one, and leaves it out where no flag was given.
func (f *careFlags) healthCheck(before *remotegpuv1.HealthCheck, changed func(string) bool) (*remotegpuv1.HealthCheck, error) {
	var given []string
	for _, flag := range healthKinds() {
		if changed(flag) {
			given = append(given, "--"+flag)
		}
	}
	switch {
	case len(given) > 1:
		return nil, usagef("keep one of them", "%s are several health checks", strings.Join(given, " and "))
	case len(given) == 0 && !slices.ContainsFunc(healthTimes(), changed):
		return before, nil
	case len(given) == 0 && before.GetCheck() == nil:
		return nil, usagef("add --health-cmd, --health-tcp, --health-http or --health-desktop", "nothing says what the health check is")
	}
	check := &remotegpuv1.HealthCheck{}
	if before != nil {
		check = proto.CloneOf(before)
	}
	if len(given) > 0 {
		if err := f.setCheck(check, given[0]); err != nil {
			return nil, err
		}
	}
	if changed("health-retries") {
		check.Retries = f.retries
	}
	for _, time := range []struct {
		flag  string
		value time.Duration
		into  **durationpb.Duration
	}{
		{"health-interval", f.interval, &check.Interval},
		{"health-timeout", f.timeout, &check.Timeout},
		{"health-start-period", f.startAfter, &check.StartPeriod},
	} {
		if !changed(time.flag) {
			continue
		}
		if *time.into = nil; time.value != 0 {
			*time.into = durationpb.New(time.value)
		}
	}
	return check, nil
}

// setCheck sets what a health check is, by the flag that says it.
func (f *careFlags) setCheck(check *remotegpuv1.HealthCheck, flag string) error {
	switch flag {
	case "--health-cmd":
		check.Check = &remotegpuv1.HealthCheck_Command{Command: &remotegpuv1.HealthCommand{Argv: f.command}}
	case "--health-tcp":
		check.Check = &remotegpuv1.HealthCheck_Tcp{Tcp: &remotegpuv1.HealthTCP{Port: f.tcp}}
	case "--health-http":
		number, path, slash := strings.Cut(f.http, "/")
		port, err := strconv.ParseUint(number, 10, 16)
		if err != nil || port == 0 {
			return usagef("write PORT or PORT/path, for example 8080/ready", "%q has no port", f.http)
		}
		if slash {
			path = "/" + path
		}
		check.Check = &remotegpuv1.HealthCheck_Http{Http: &remotegpuv1.HealthHTTP{Port: int32(port), Path: path}}
	case "--health-desktop":
		if !f.desktop {
			return usagef("leave it out; env update has --no-health", "--health-desktop=false is no health check")
		}
		check.Check = &remotegpuv1.HealthCheck_Desktop{Desktop: &remotegpuv1.HealthDesktop{}}
	}
	return nil
}

// envLife is the state with what else matters of it: "running (healthy)".
func envLife(e *remotegpuv1.Environment) string {
	text := envState(e)
	switch {
	case e.GetPaused():
		return text + " (paused)"
	case e.GetRestartAt() != nil:
		return text + " (restarting)"
	case e.GetHealth() != remotegpuv1.Health_HEALTH_UNSPECIFIED && e.GetState() == remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_RUNNING:
		return text + " (" + state(e.GetHealth(), "HEALTH_") + ")"
	}
	return text
}

func healthCheckText(c *remotegpuv1.HealthCheck) string {
	var what string
	switch check := c.GetCheck().(type) {
	case *remotegpuv1.HealthCheck_Command:
		what = strings.Join(check.Command.GetArgv(), " ")
	case *remotegpuv1.HealthCheck_Tcp:
		what = fmt.Sprintf("TCP port %d", check.Tcp.GetPort())
	case *remotegpuv1.HealthCheck_Http:
		what = fmt.Sprintf("HTTP port %d%s", check.Http.GetPort(), check.Http.GetPath())
	case *remotegpuv1.HealthCheck_Desktop:
		what = "the desktop has drawn"
	default:
		return ""
	}
	return fmt.Sprintf("%s, every %s", what, c.GetInterval().AsDuration())
}

func restartText(e *remotegpuv1.Environment) string {
	policy := e.GetSpec().GetRestart()
	if policy == nil {
		return ""
	}
	text := strings.ReplaceAll(state(policy.GetMode(), "RESTART_MODE_"), "_", "-")
	if policy.GetMaxRetries() > 0 {
		text += fmt.Sprintf(":%d", policy.GetMaxRetries())
	}
	if policy.GetOnUnhealthy() {
		text += ", also when unhealthy"
	}
	if n := e.GetRestartCount(); n > 0 {
		text += fmt.Sprintf("; restarted %d times", n)
	}
	if e.GetRestartAt() != nil {
		text += "; next at " + moment(e.GetRestartAt())
	}
	return text
}

func (a *app) envEvents() *cobra.Command {
	request := &remotegpuv1.ListEnvironmentEventsRequest{}
	var page paging
	cmd := &cobra.Command{
		Use: "events NAME", Short: "Show what happened to an environment, newest first", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeEnvs,
		Long: `events shows what happened to an environment: starts, exits, restarts, changes
of health. The last 100 are kept; those of a deleted environment are found by
its id for a week.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			request.Environment, request.Project = args[0], a.project
			all, next, err := pages(&page, func(size int32, token string) ([]*remotegpuv1.EnvironmentEvent, string, error) {
				request.PageSize, request.PageToken = size, token
				response, err := c.environments.ListEnvironmentEvents(cmd.Context(), request)
				return response.GetEvents(), response.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(&remotegpuv1.ListEnvironmentEventsResponse{Events: all, NextPageToken: next})
			}
			rows := make([][]string, 0, len(all))
			for _, event := range all {
				message := event.GetMessage()
				if exit := event.GetExit(); exit != nil {
					message += fmt.Sprintf(" (exit code %d)", exit.GetCode())
				}
				rows = append(rows, []string{moment(event.GetTime()), event.GetKind(), message})
			}
			return a.table([]string{"TIME", "EVENT", "WHAT HAPPENED"}, rows)
		},
	}
	page.register(a, cmd, 0)
	return cmd
}
