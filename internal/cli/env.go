package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) envCommand() *cobra.Command {
	return group("env", "Environments: create, use and delete them",
		a.envCreate(), a.envList(), a.envGet(), a.envStart(), a.envStop(), a.envRestart(),
		a.envPause(), a.envResume(), a.envRename(), a.envUpdate(), a.envRemove(),
		a.envStats(), a.envTop(),
		a.envWatch(), a.envWait(), a.envExec(), a.envShell(), a.envCopy(), a.envLogs(), a.envEvents(),
		a.envSnapshot(), a.envClone())
}

func (a *app) envList() *cobra.Command {
	request := &remotegpuv1.ListEnvironmentsRequest{}
	var states []string
	var page paging
	var q quiet
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List environments, oldest first", Args: cobra.NoArgs,
		Long: `ls lists environments, those of all projects unless --project says one. --quiet
prints their ids, which every command takes in place of a name, whatever project
they are in:
  remotegpu env stop $(remotegpu env ls --quiet --state running)`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			request.Project = a.project
			if request.States, err = parseEnums[remotegpuv1.EnvironmentState](states, "state",
				"ENVIRONMENT_STATE_", remotegpuv1.EnvironmentState_value); err != nil {
				return err
			}
			all, next, err := pages(&page, func(size int32, token string) ([]*remotegpuv1.Environment, string, error) {
				request.PageSize, request.PageToken = size, token
				response, err := c.environments.ListEnvironments(cmd.Context(), request)
				return response.GetEnvironments(), response.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			if q.on {
				return identifiers(a, all, (*remotegpuv1.Environment).GetId)
			}
			if a.output == "json" {
				return a.json(&remotegpuv1.ListEnvironmentsResponse{Environments: all, NextPageToken: next})
			}
			return a.envTable(all)
		},
	}
	cmd.Flags().StringVarP(&request.LabelSelector, "selector", "l", "", "only with these labels: key=value,key!=value,key,!key")
	cmd.Flags().StringSliceVar(&states, "state", nil, "only in these states: creating, running, stopped, error")
	page.register(a, cmd, 0)
	q.register(a, cmd, "ids")
	filters(cmd, "selector", "state")
	a.complete(cmd, "state", "creating", "running", "stopped", "error")
	return cmd
}

func (a *app) envTable(all []*remotegpuv1.Environment) error {
	// The project is said where it says something.
	projects := slices.ContainsFunc(all, func(e *remotegpuv1.Environment) bool { return e.GetProject() != "default" })
	header := []string{"NAME", "STATE", "IMAGE", "ADDRESS", "PORTS", "DESKTOP", "AGE"}
	if projects {
		header = slices.Insert(header, 1, "PROJECT")
	}
	rows := make([][]string, 0, len(all))
	for _, e := range all {
		row := []string{
			e.GetName(), envLife(e), e.GetSpec().GetImage(), dash(e.GetAddress()),
			dash(portList(e.GetPortMappings())), envDesktop(e), age(e.GetCreatedAt()),
		}
		if projects {
			row = slices.Insert(row, 1, dash(e.GetProject()))
		}
		rows = append(rows, row)
	}
	return a.table(header, rows)
}

func envState(e *remotegpuv1.Environment) string {
	return state(e.GetState(), "ENVIRONMENT_STATE_")
}

func envDesktop(e *remotegpuv1.Environment) string {
	switch {
	case e.GetSpec().GetDesktop() == nil:
		return "-"
	case e.GetDesktopReady():
		return "ready"
	case e.GetState() == remotegpuv1.EnvironmentState_ENVIRONMENT_STATE_RUNNING:
		return "starting"
	default:
		return "-"
	}
}

// portList names the first mappings, and how many more there are: a line of a
// table has its end.
func portList(mappings []*remotegpuv1.PortMapping) string {
	const named = 3
	texts := make([]string, 0, named+1)
	for i, m := range mappings {
		if i == named && len(mappings) > named+1 { // one alone takes no more room than its number
			texts = append(texts, fmt.Sprintf("+%d", len(mappings)-named))
			break
		}
		texts = append(texts, fmt.Sprintf("%d->%d/%s", m.GetExternalPort(), m.GetInternalPort(), state(m.GetProtocol(), "PROTOCOL_")))
	}
	return strings.Join(texts, ",")
}

func (a *app) envGet() *cobra.Command {
	return &cobra.Command{
		Use: "get NAME...", Short: "Show environments", Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.completeEnvs,
		Long: `get shows environments with all they are. With -o json several are one line each.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			shown := false
			return a.each(cmd.Context(), args, func(name string) error {
				e, err := a.environment(cmd.Context(), c, name)
				switch {
				case err != nil:
					return err
				case len(args) > 1 && a.output == "json":
					return a.jsonLine(e)
				case shown:
					if err := a.printf("\n"); err != nil {
						return err
					}
				}
				shown = true
				return a.showEnvironment(e)
			})
		},
	}
}

func (a *app) environment(ctx context.Context, c *clients, name string) (*remotegpuv1.Environment, error) {
	response, err := c.environments.GetEnvironment(ctx, &remotegpuv1.GetEnvironmentRequest{Environment: name, Project: a.project})
	if err != nil {
		return nil, err
	}
	return response.GetEnvironment(), nil
}

func (a *app) showEnvironment(e *remotegpuv1.Environment) error {
	for _, warning := range e.GetWarnings() {
		a.say("Warning: %s", plain(warning))
	}
	if a.output == "json" {
		return a.json(e)
	}
	spec := e.GetSpec()
	rows := [][]string{
		{"Name", e.GetName()},
		{"Id", e.GetId()},
		{"Project", e.GetProject()},
		{"Node", e.GetNode()},
		{"State", envLife(e)},
		{"Problem", problemText(e.GetProblem())},
		{"Try", e.GetProblem().GetHint()},
		{"Last exit", exitText(e.GetExit())},
		{"Health check", healthCheckText(spec.GetHealthCheck())},
		{"Health", e.GetHealthDetail()},
		{"Restart", restartText(e)},
		{"Out of memory", oomText(e.GetOomKills())},
		{"Needs restart", strings.Join(e.GetRestartNeeded(), ", ")},
		{"Operation", e.GetOperation()},
		{"Image", spec.GetImage()},
		{"Snapshot", spec.GetSnapshot()},
		{"Digest", e.GetImageDigest()},
		{"Command", strings.Join(slices.Concat(spec.GetEntrypoint(), spec.GetCommand()), " ")},
		{"User", spec.GetUser()},
		{"Address", strings.TrimSpace(e.GetAddress() + " " + e.GetAddress6())},
		{"Limits", limitsText(spec.GetResources())},
		{"Disk limit", diskLimitText(e.GetDiskLimit())},
		{"Labels", pairs(e.GetLabels())},
	}
	for _, l := range e.GetGpus() {
		rows = append(rows, []string{"GPU", gpuText(l)})
	}
	for _, m := range e.GetPortMappings() {
		rows = append(rows, []string{"Port", portText(m)})
	}
	for _, access := range e.GetAccess() {
		if isDesktopPage(e, access) {
			continue // without a token it opens nothing; "Desktop" says how to get one
		}
		rows = append(rows, []string{"Access", state(access.GetServiceType(), "SERVICE_TYPE_") + " " + access.GetUrl()})
	}
	for _, m := range spec.GetMounts() {
		rows = append(rows, []string{"Mount", mountText(m)})
	}
	rows = append(rows, networkRows(spec.GetNetwork())...)
	if d := spec.GetDesktop(); d != nil {
		rows = append(rows, []string{"Desktop", fmt.Sprintf("%dx%dx%d %s; remotegpu desktop url %s",
			d.GetWidth(), d.GetHeight(), d.GetDepth(), envDesktop(e), e.GetName())})
	}
	rows = append(rows, []string{"Created", moment(e.GetCreatedAt())}, []string{"Started", moment(e.GetStartedAt())})
	return a.facts(rows)
}

// isDesktopPage says whether an address is the page of the environment's
// desktop at the gateway.
func isDesktopPage(e *remotegpuv1.Environment, access *remotegpuv1.AccessURL) bool {
	return access.GetServiceType() == remotegpuv1.ServiceType_SERVICE_TYPE_NOVNC && strings.HasSuffix(access.GetUrl(), "/desktop/"+e.GetId())
}

func portText(m *remotegpuv1.PortMapping) string {
	text := strings.TrimSpace(fmt.Sprintf("%s %d->%d/%s %s", state(m.GetServiceType(), "SERVICE_TYPE_"),
		m.GetExternalPort(), m.GetInternalPort(), state(m.GetProtocol(), "PROTOCOL_"), m.GetDescription()))
	if who := reachText(m, ", "); who != "" {
		text += ", for " + who
	}
	if m.GetExpiresAt() != nil {
		text += ", until " + moment(m.GetExpiresAt())
	}
	return text
}

func problemText(p *remotegpuv1.Problem) string {
	if p == nil {
		return ""
	}
	return fmt.Sprintf("%s (%s)", p.GetMessage(), p.GetReason())
}

func exitText(e *remotegpuv1.ExitStatus) string {
	if e == nil {
		return ""
	}
	text := fmt.Sprintf("code %d", e.GetCode())
	if e.GetSignal() != 0 {
		text += fmt.Sprintf(", signal %d", e.GetSignal())
	}
	if e.GetOomKilled() {
		text += ", out of memory"
	}
	return strings.TrimSpace(text + " " + moment(e.GetAt()))
}

// oomText says how often the kernel killed for memory.
func oomText(kills int32) string {
	switch kills {
	case 0:
		return ""
	case 1:
		return "a process was killed since its start"
	default:
		return fmt.Sprintf("%d processes were killed since its start", kills)
	}
}

func limitsText(r *remotegpuv1.Resources) string {
	var limits []string
	if r.GetCpuMillis() > 0 {
		limits = append(limits, fmt.Sprintf("%g CPUs", float64(r.GetCpuMillis())/1000))
	}
	if r.GetMemoryBytes() > 0 {
		limits = append(limits, size(r.GetMemoryBytes())+" memory")
	}
	if r.GetPids() > 0 {
		limits = append(limits, fmt.Sprintf("%d processes", r.GetPids()))
	}
	if r.GetShmBytes() > 0 {
		limits = append(limits, size(r.GetShmBytes())+" /dev/shm")
	}
	if r.GetDiskBytes() > 0 {
		limits = append(limits, size(r.GetDiskBytes())+" disk")
	}
	return strings.Join(limits, ", ")
}

// diskLimitText says what became of a limit of the writable layer.
func diskLimitText(limit *remotegpuv1.DiskLimit) string {
	switch {
	case limit == nil:
		return ""
	case limit.GetEnforced():
		return size(limit.GetBytes()) + ", enforced"
	default:
		return "not enforced, because " + limit.GetReason()
	}
}

func mountText(m *remotegpuv1.Mount) string {
	text := state(m.GetType(), "MOUNT_TYPE_") + " "
	if m.GetSource() != "" {
		text += m.GetSource() + " -> "
	}
	text += m.GetTarget()
	if m.GetSizeBytes() > 0 {
		text += ", " + size(m.GetSizeBytes())
	}
	if m.GetReadOnly() {
		text += ", read-only"
	}
	return text
}

func pairs(labels map[string]string) string {
	texts := make([]string, 0, len(labels))
	for key, value := range labels {
		texts = append(texts, key+"="+value)
	}
	slices.Sort(texts)
	return strings.Join(texts, ",")
}

// parseEnums reads the short names of an enum's values.
func parseEnums[E ~int32](words []string, what, prefix string, values map[string]int32) ([]E, error) {
	found := make([]E, 0, len(words))
	for _, word := range words {
		value := values[prefix+strings.ToUpper(word)]
		if value == 0 {
			var names []string
			for name, number := range values {
				if number != 0 {
					names = append(names, strings.ToLower(strings.TrimPrefix(name, prefix)))
				}
			}
			slices.Sort(names)
			return nil, usagef("use one of "+strings.Join(names, ", "), "%s %q is not one", what, word)
		}
		found = append(found, E(value))
	}
	return found, nil
}
