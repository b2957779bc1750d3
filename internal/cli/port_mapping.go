package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) portAdd() *cobra.Command {
	f := &termsFlags{}
	request := &remotegpuv1.CreatePortMappingRequest{}
	var service string
	var udp bool
	cmd := &cobra.Command{
		Use: "add ENVIRONMENT", Short: "Publish one more port of an environment, without a restart", Args: cobra.ExactArgs(1),
		Long: "add publishes a port of an environment that runs or is stopped. The node picks the\nhost port from the service's pool unless --external names one.\n\n" +
			termsHelp,
		Example: `  remotegpu port add demo --internal 8080
  remotegpu port add demo --service ssh --allow 203.0.113.0/24 --expires 2h
  remotegpu port add demo --internal 5353 --external 15001 --udp`,
		ValidArgsFunction: a.completeEnvs,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			request.Environment, request.Project, request.RequestId = args[0], a.project, f.id()
			request.Description = f.description
			if request.ServiceType, err = parseService(service); err != nil {
				return err
			}
			switch {
			case udp && tcpOnly(service):
				return usagef("leave --udp out, or publish the UDP port of another program with --service custom --internal PORT", "%s is spoken over TCP", service)
			case udp:
				request.Protocol = remotegpuv1.Protocol_PROTOCOL_UDP
			}
			changed := cmd.Flags().Changed
			if request.AllowedSources, err = f.sources(changed); err != nil {
				return err
			}
			if request.ExpiresIn, request.ExpiresAt, err = f.end(changed); err != nil {
				return err
			}
			return a.addPort(cmd.Context(), f, request)
		},
	}
	f.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&service, "service", "custom", "what it is for: ssh, rdp, jupyter, vnc, novnc, custom")
	flags.Int32Var(&request.InternalPort, "internal", 0, "port inside; custom has none of its own")
	flags.Int32Var(&request.ExternalPort, "external", 0, "host port; 0: the node picks one")
	flags.BoolVar(&udp, "udp", false, "UDP in place of TCP")
	etagFlag(flags, &request.Etag)
	a.complete(cmd, "service", services()...)
	return cmd
}

func (a *app) addPort(ctx context.Context, f *termsFlags, request *remotegpuv1.CreatePortMappingRequest) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	response, err := c.ports.CreatePortMapping(ctx, request)
	if err != nil {
		return err
	}
	m, err := a.mappingDone(ctx, c, &f.waiting, response.GetOperation(), response.GetPortMapping())
	if err != nil || m == nil {
		return err
	}
	e, err := a.environment(ctx, c, m.GetEnvironment())
	if err != nil {
		return err
	}
	a.sayRestartNeeded(e.GetName(), e.GetRestartNeeded())
	return a.showMapping(m, fmt.Sprintf("%s: host port %d leads to port %d", e.GetName(), m.GetExternalPort(), m.GetInternalPort()))
}

// mappingDone waits for an operation on a mapping and returns the mapping as it
// is then; nil when nobody waits: the operation is told instead.
func (a *app) mappingDone(ctx context.Context, c *clients, w *waiting, op *remotegpuv1.Operation, m *remotegpuv1.PortMapping) (*remotegpuv1.PortMapping, error) {
	id := m.GetId()
	if op != nil {
		done, err := a.await(ctx, c, w, op)
		switch {
		case err != nil:
			return nil, err
		case w.noWait && a.output == "json":
			return nil, a.json(op)
		case w.noWait:
			return nil, a.printf("%s\n", op.GetId())
		}
		id = orElse(done.GetResult()["mapping"], id)
	}
	response, err := c.ports.GetPortMapping(ctx, &remotegpuv1.GetPortMappingRequest{Id: id})
	if err != nil {
		return nil, err
	}
	return response.GetPortMapping(), nil
}

// showMapping shows a mapping that was changed.
func (a *app) showMapping(m *remotegpuv1.PortMapping, text string) error {
	if a.output == "json" {
		return a.json(m)
	}
	if m.GetProtocol() == remotegpuv1.Protocol_PROTOCOL_UDP {
		text += ", UDP"
	}
	if who := reachText(m, ", "); who != "" && m.GetReach() != remotegpuv1.PortReach_PORT_REACH_NOWHERE {
		text += ", for " + who
	}
	if m.GetExpiresAt() != nil {
		text += ", until " + moment(m.GetExpiresAt())
	}
	return a.printf("%s\n", plain(text))
}

func (a *app) portGet() *cobra.Command {
	return &cobra.Command{
		Use: "get MAPPING", Short: "Show one port mapping, by its id or the project's HOSTPORT[/udp]", Args: cobra.ExactArgs(1),
		ValidArgsFunction: inTurn(a.completeMappings),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			m, err := a.mapping(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(m)
			}
			return a.facts([][]string{
				{"Id", m.GetId()},
				{"Environment", m.GetEnvironment()},
				{"Name", m.GetEnvironmentName()},
				{"Project", m.GetProject()},
				{"Service", state(m.GetServiceType(), "SERVICE_TYPE_")},
				{"Host port", fmt.Sprintf("%d/%s", m.GetExternalPort(), state(m.GetProtocol(), "PROTOCOL_"))},
				{"Inside", fmt.Sprint(m.GetInternalPort())},
				{"Status", state(m.GetStatus(), "PORT_MAPPING_STATUS_")},
				{"Allowed", reachText(m, ", ")},
				{"Description", m.GetDescription()},
				{"Created", moment(m.GetCreatedAt())},
				{"Expires", moment(m.GetExpiresAt())},
				{"Released", moment(m.GetReleasedAt())},
			})
		},
	}
}

func (a *app) portUpdate() *cobra.Command {
	f := &termsFlags{}
	request := &remotegpuv1.UpdatePortMappingRequest{}
	var everybody bool
	cmd := &cobra.Command{
		Use: "update MAPPING", Short: "Change who reaches a published port, and until when", Args: cobra.ExactArgs(1),
		ValidArgsFunction: inTurn(a.completeMappings),
		Long: "update changes a mapping, named by its id or the project's HOSTPORT[/udp],\nat once. What is not named stays. Connections of those who do not reach it any\nmore end.\n\n" +
			termsHelp + "\n--expires never takes the end away, --allow-default the list.",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			changed := cmd.Flags().Changed
			mask := &fieldmaskpb.FieldMask{}
			request.RequestId, request.Description, request.UpdateMask = f.id(), f.description, mask
			if changed("description") {
				mask.Paths = append(mask.Paths, "description")
			}
			if changed("allow") && everybody {
				return usagef("give one of them", "--allow and --allow-default contradict each other")
			}
			if request.AllowedSources, err = f.sources(changed); err != nil {
				return err
			}
			if changed("allow") || everybody {
				mask.Paths = append(mask.Paths, "allowed_sources")
			}
			if request.ExpiresIn, request.ExpiresAt, err = f.end(changed); err != nil {
				return err
			}
			switch {
			case request.GetExpiresIn() != nil:
				mask.Paths = append(mask.Paths, "expires_in")
			case changed("expires"):
				mask.Paths = append(mask.Paths, "expires_at")
			}
			if len(mask.GetPaths()) == 0 {
				return usagef("name --allow, --allow-default, --expires or --description", "it is not said what is to change")
			}
			return a.updatePort(cmd.Context(), f, args[0], request)
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&everybody, "allow-default", false, "take the list of --allow away")
	etagFlag(cmd.Flags(), &request.Etag)
	return cmd
}

func (a *app) updatePort(ctx context.Context, f *termsFlags, word string, request *remotegpuv1.UpdatePortMappingRequest) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	m, err := a.mapping(ctx, c, word)
	if err != nil {
		return err
	}
	request.Id = m.GetId()
	response, err := c.ports.UpdatePortMapping(ctx, request)
	if err != nil {
		return err
	}
	m, err = a.mappingDone(ctx, c, &f.waiting, response.GetOperation(), response.GetPortMapping())
	if err != nil || m == nil {
		return err
	}
	what := "updated"
	if response.GetOperation() == nil {
		what = "nothing to do"
	}
	return a.showMapping(m, fmt.Sprintf("host port %d: %s", m.GetExternalPort(), what))
}

func (a *app) portRemove() *cobra.Command {
	w := &waiting{}
	request := &remotegpuv1.DeletePortMappingRequest{}
	cmd := &cobra.Command{
		Use: "rm MAPPING", Aliases: []string{"remove", "delete"}, Short: "Withdraw a published port, by its id or the project's HOSTPORT[/udp]", Args: cobra.ExactArgs(1),
		ValidArgsFunction: inTurn(a.completeMappings),
		Long:              "rm withdraws a port of an environment, ends its connections and gives the host port\nback, without a restart. It may be repeated.",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			m, err := a.mappingOnce(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			request.Id, request.RequestId = m.GetId(), w.id()
			response, err := c.ports.DeletePortMapping(cmd.Context(), request)
			if err != nil {
				return err
			}
			if m, err = a.mappingDone(cmd.Context(), c, w, response.GetOperation(), response.GetPortMapping()); err != nil || m == nil {
				return err
			}
			return a.showMapping(m, fmt.Sprintf("host port %d: released", m.GetExternalPort()))
		},
	}
	w.register(cmd.Flags())
	etagFlag(cmd.Flags(), &request.Etag)
	return cmd
}
