package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// mapping finds a mapping by its id, or the one of the project that holds a host
// port.
func (a *app) mapping(ctx context.Context, c *clients, word string) (*remotegpuv1.PortMapping, error) {
	held, request, err := a.held(ctx, c, word)
	if err == nil && held == nil {
		err = a.notPublished(ctx, c, word, request)
	}
	return held, err
}

// held is as mapping, but nil when none holds the host port, and then what asks
// for those that do.
func (a *app) held(ctx context.Context, c *clients, word string) (*remotegpuv1.PortMapping, *remotegpuv1.ListPortMappingsRequest, error) {
	request, err := byHostPort(word)
	if err != nil {
		return nil, nil, err
	}
	if request == nil {
		response, err := c.ports.GetPortMapping(ctx, &remotegpuv1.GetPortMappingRequest{Id: word})
		return response.GetPortMapping(), nil, err
	}
	// As a name does, a port leads to what is in the project: an id to any.
	request.Project = orElse(a.project, "default")
	response, err := c.ports.ListPortMappings(ctx, request)
	if err != nil || len(response.GetPortMappings()) == 0 {
		return nil, request, err
	}
	return response.GetPortMappings()[0], request, nil
}

// mappingOnce does as mapping, and finds the one that held a host port last when
// none does: who repeats a removal means that.
func (a *app) mappingOnce(ctx context.Context, c *clients, word string) (*remotegpuv1.PortMapping, error) {
	last, request, err := a.held(ctx, c, word)
	if err != nil || last != nil {
		return last, err
	}
	held := proto.CloneOf(request)
	request.IncludeReleased, request.PageSize = true, 500
	for {
		response, err := c.ports.ListPortMappings(ctx, request)
		if err != nil {
			return nil, err
		}
		for _, m := range response.GetPortMappings() {
			if last == nil || !m.GetCreatedAt().AsTime().Before(last.GetCreatedAt().AsTime()) {
				last = m
			}
		}
		if request.PageToken = response.GetNextPageToken(); request.GetPageToken() == "" {
			break
		}
	}
	if last == nil {
		return nil, a.notPublished(ctx, c, word, held)
	}
	return last, nil
}

// byHostPort asks for the mapping that holds HOSTPORT[/udp]; nil: the word is no
// number.
func byHostPort(word string) (*remotegpuv1.ListPortMappingsRequest, error) {
	number, protocol, said := strings.Cut(word, "/")
	host, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return nil, nil //nolint:nilerr,nilnil // it is an id then
	}
	if host == 0 { // which would ask for all
		return nil, usagef("write 15000 or 15000/udp", "0 is no host port")
	}
	request := &remotegpuv1.ListPortMappingsRequest{ExternalPort: int32(host), Protocol: remotegpuv1.Protocol_PROTOCOL_TCP, PageSize: 1}
	if said {
		value := remotegpuv1.Protocol_value["PROTOCOL_"+strings.ToUpper(protocol)]
		if value == 0 {
			return nil, usagef("write 15000 or 15000/udp", "protocol %q is neither tcp nor udp", protocol)
		}
		request.Protocol = remotegpuv1.Protocol(value)
	}
	return request, nil
}

// notPublished says that no mapping of the project holds a host port, and which
// project's does. request asked for that of the project.
func (a *app) notPublished(ctx context.Context, c *clients, word string, request *remotegpuv1.ListPortMappingsRequest) error {
	project := request.GetProject()
	none := &failure{
		Code: "not_found", Reason: "PORT_MAPPING_NOT_FOUND", exit: exitNotFound,
		Message: fmt.Sprintf("host port %s is not published in project %s", word, project),
		Hints:   []string{"remotegpu port ls --project " + project + " lists those that are"},
	}
	request.Project = ""
	response, err := c.ports.ListPortMappings(ctx, request)
	if err != nil {
		return err
	}
	for _, m := range response.GetPortMappings() {
		if other := m.GetProject(); other != project {
			none.Message = fmt.Sprintf("host port %s belongs to project %s, not to %s", word, other, project)
			none.Hints = []string{fmt.Sprintf("use --project %s, or the mapping's id: %s", other, m.GetId())}
		}
	}
	return none
}
