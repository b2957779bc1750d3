package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) portCommand() *cobra.Command {
	return group("port", "Published ports and their pools", a.portList(), a.portGet(), a.portAdd(), a.portUpdate(), a.portRemove(), a.portPool())
}

func (a *app) portList() *cobra.Command {
	request := &remotegpuv1.ListPortMappingsRequest{}
	var service, at string
	var page paging
	var q quiet
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List port mappings by host port", Args: cobra.NoArgs,
		Long: `ls lists port mappings, those of all projects unless --project says one. ALLOWED
is from where a port is reached: everybody, some networks, or the host and
environments of the node only, as [ports] closed_by_default has it. With --all
or --at, --env may name an environment that is gone. With --at, EXPIRES, ALLOWED
and DESCRIPTION are as they were then; "-" is the node's default of then.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			request.Project = a.project
			if service != "" {
				if request.ServiceType, err = parseService(service); err != nil {
					return err
				}
			}
			if request.At, err = instant("at", at); err != nil {
				return err
			}
			all, next, err := pages(&page, func(size int32, token string) ([]*remotegpuv1.PortMapping, string, error) {
				request.PageSize, request.PageToken = size, token
				response, err := c.ports.ListPortMappings(cmd.Context(), request)
				return response.GetPortMappings(), response.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			if q.on {
				return identifiers(a, all, (*remotegpuv1.PortMapping).GetId)
			}
			if a.output == "json" {
				return a.json(&remotegpuv1.ListPortMappingsResponse{PortMappings: all, NextPageToken: next})
			}
			end := untilEnd
			if request.GetAt() != nil { // seen from then
				end = func(m *remotegpuv1.PortMapping) string { return moment(m.GetExpiresAt()) }
			}
			rows := make([][]string, 0, len(all))
			for _, m := range all {
				rows = append(rows, []string{
					fmt.Sprint(m.GetExternalPort()), fmt.Sprint(m.GetInternalPort()), state(m.GetProtocol(), "PROTOCOL_"),
					state(m.GetServiceType(), "SERVICE_TYPE_"), state(m.GetStatus(), "PORT_MAPPING_STATUS_"),
					m.GetProject(), orElse(m.GetEnvironmentName(), m.GetEnvironment()), age(m.GetCreatedAt()), dash(end(m)),
					dash(reachText(m, ",")), m.GetDescription(),
				})
			}
			return a.table([]string{"HOST", "INSIDE", "PROTOCOL", "SERVICE", "STATUS", "PROJECT", "ENVIRONMENT", "AGE", "EXPIRES", "ALLOWED", "DESCRIPTION"}, rows)
		},
	}
	cmd.Flags().StringVar(&request.Environment, "env", "", "only those of this environment")
	cmd.Flags().StringVar(&service, "service", "", "only those of this service: ssh, rdp, jupyter, vnc, novnc, custom")
	cmd.Flags().BoolVarP(&request.IncludeReleased, "all", "a", false, "released ones too")
	cmd.Flags().Int32Var(&request.ExternalPort, "external", 0, "only those of this host port")
	cmd.Flags().StringVar(&at, "at", "", "those that were held at this time, such as 2026-11-26T14:30:00+01:00, or that long ago: who had a port then")
	page.register(a, cmd, 0)
	q.register(a, cmd, "ids")
	filters(cmd, "env", "service", "external", "at")
	a.complete(cmd, "service", services()...)
	a.completeWith(cmd, "env", a.completeEnvs)
	return cmd
}

// reachText says from where a mapping is reached, "" where the node does not say
// and there is no list.
func reachText(m *remotegpuv1.PortMapping, separator string) string {
	switch m.GetReach() {
	case remotegpuv1.PortReach_PORT_REACH_EVERYBODY:
		return "everybody"
	case remotegpuv1.PortReach_PORT_REACH_NODE:
		return "host and environments only"
	default:
		return strings.Join(m.GetAllowedSources(), separator)
	}
}

// untilEnd is how long a mapping stays yet, "" for ever, or when it is over.
func untilEnd(m *remotegpuv1.PortMapping) string {
	if m.GetStatus() == remotegpuv1.PortMappingStatus_PORT_MAPPING_STATUS_RELEASED {
		return ""
	}
	return until(m.GetExpiresAt())
}

// until is how long it is until a time, "" for none.
func until(at *timestamppb.Timestamp) string {
	if at == nil {
		return ""
	}
	return "in " + short(time.Until(at.AsTime()))
}

func services() []string { return []string{"ssh", "rdp", "jupyter", "vnc", "novnc", "custom"} }

func parseService(word string) (remotegpuv1.ServiceType, error) {
	found, err := parseEnums[remotegpuv1.ServiceType]([]string{word}, "service", "SERVICE_TYPE_", remotegpuv1.ServiceType_value)
	if err != nil {
		return 0, err
	}
	return found[0], nil
}

func (a *app) portPool() *cobra.Command {
	cmd := &cobra.Command{
		Use: "pool", Aliases: []string{"pools"}, Short: "Show the pool of each service", Args: cobra.NoArgs,
		Long: `pool shows the range of host ports of each service and how full it is: IN USE are
ports of the range that are held, by whatever service; RESTING were released
lately; FREE could be given out now; OUTSIDE are held by the service outside of
the range, from before it was changed.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			response, err := c.ports.ListPortPools(cmd.Context(), &remotegpuv1.ListPortPoolsRequest{})
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(response)
			}
			return a.poolTable(response.GetPools())
		},
	}
	cmd.AddCommand(a.portPoolSet())
	return cmd
}

func (a *app) poolTable(pools []*remotegpuv1.PortPool) error {
	rows := make([][]string, 0, len(pools))
	for _, pool := range pools {
		inside := "-"
		if port := pool.GetDefaultInternalPort(); port != 0 {
			inside = fmt.Sprint(port)
		}
		rows = append(rows, []string{
			state(pool.GetServiceType(), "SERVICE_TYPE_"), fmt.Sprintf("%d-%d", pool.GetFirstPort(), pool.GetLastPort()),
			inside, fmt.Sprint(pool.GetInUse()), fmt.Sprint(pool.GetResting()), fmt.Sprint(pool.GetFree()), fmt.Sprint(pool.GetOutside()),
		})
	}
	return a.table([]string{"SERVICE", "RANGE", "INSIDE", "IN USE", "RESTING", "FREE", "OUTSIDE"}, rows)
}

func (a *app) portPoolSet() *cobra.Command {
	request := &remotegpuv1.UpdatePortPoolRequest{}
	cmd := &cobra.Command{
		Use: "set SERVICE FIRST-LAST", Short: "Change the range of a pool",
		Long: "set changes the host ports that a service's mappings are taken from. Mappings\noutside the new range stay until they are released.",
		Args: cobra.ExactArgs(2), ValidArgs: services(),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if request.ServiceType, err = parseService(args[0]); err != nil {
				return err
			}
			if request.FirstPort, request.LastPort, err = parseRange(args[1]); err != nil {
				return err
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			response, err := c.ports.UpdatePortPool(cmd.Context(), request)
			if err != nil {
				return err
			}
			for _, warning := range response.GetWarnings() {
				a.say("Warning: %s", plain(warning))
			}
			if a.output == "json" {
				return a.json(response.GetPool())
			}
			return a.poolTable([]*remotegpuv1.PortPool{response.GetPool()})
		},
	}
	etagFlag(cmd.Flags(), &request.Etag)
	return cmd
}

// parseRange reads FIRST-LAST.
func parseRange(text string) (first, last int32, err error) {
	from, to, ok := strings.Cut(text, "-")
	bad := func(format string, args ...any) error {
		return usagef("write FIRST-LAST, for example 23000-23999", "range %q: "+format, append([]any{text}, args...)...)
	}
	if !ok {
		return 0, 0, bad("its last port is missing")
	}
	var ends [2]int32
	for i, word := range []string{from, to} {
		number, err := strconv.ParseUint(word, 10, 16)
		switch {
		case errors.Is(err, strconv.ErrRange):
			return 0, 0, bad("port %s is above 65535", word)
		case err != nil || number == 0:
			return 0, 0, bad("%q is no port", word)
		}
		ends[i] = int32(number)
	}
	if ends[1] < ends[0] {
		return 0, 0, bad("it ends before it begins")
	}
	return ends[0], ends[1], nil
}
