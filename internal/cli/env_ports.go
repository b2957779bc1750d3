package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// parsePort reads [HOSTPORT:][SERVICE:][PORT][/PROTOCOL], then =DESCRIPTION or
// options behind commas: allow=NETWORK, any number of times, expires=TIME and
// description=TEXT. What is said relative to now is relative to that.
func parsePort(text string, now time.Time) (*remotegpuv1.PortRequest, error) {
	bad := func(why string) error {
		return usagef("write [HOSTPORT:][SERVICE:][PORT][/udp][=DESCRIPTION] or …[,allow=NETWORK][,expires=2h], for example ssh, 8080 or 15000:8080",
			"port %q: %s", text, why)
	}
	request := &remotegpuv1.PortRequest{}
	rest, description, _ := strings.Cut(text, "=")
	request.Description = description
	if strings.Contains(rest, ",") {
		options := strings.Split(text, ",")
		rest, request.Description = options[0], ""
		for _, option := range options[1:] {
			if why := portOption(request, option, now); why != "" {
				return nil, bad(why)
			}
		}
	}
	rest, protocol, said := strings.Cut(rest, "/")
	if said {
		value := remotegpuv1.Protocol_value["PROTOCOL_"+strings.ToUpper(protocol)]
		if value == 0 {
			return nil, bad("the protocol is neither tcp nor udp")
		}
		request.Protocol = remotegpuv1.Protocol(value)
	}
	service, before, after, why := portWords(rest)
	if why != "" {
		return nil, bad(why)
	}
	if service == "" && len(before) > 0 { // [HOSTPORT:]PORT
		service, before, after = "custom", before[:len(before)-1], before[len(before)-1:]
	}
	value := remotegpuv1.ServiceType_value["SERVICE_TYPE_"+strings.ToUpper(service)]
	switch {
	case len(before) > 1 || len(after) > 1:
		return nil, bad("it has too many ports")
	case value == 0:
		return nil, bad("service " + strconv.Quote(service) + " is none of " + strings.Join(services(), ", "))
	case service == "custom" && len(after) == 0:
		return nil, bad("a custom port has to say which port inside")
	case request.GetProtocol() == remotegpuv1.Protocol_PROTOCOL_UDP && tcpOnly(service):
		return nil, bad(service + " is spoken over TCP; another program's UDP port is published by its number")
	}
	request.ServiceType = remotegpuv1.ServiceType(value)
	if len(before) > 0 {
		request.ExternalPort = before[0]
	}
	if len(after) > 0 {
		request.InternalPort = after[0]
	}
	return request, nil
}

// tcpOnly says that nothing speaks a service over UDP: RDP alone does, and what
// is custom may.
func tcpOnly(service string) bool { return service != "custom" && service != "rdp" }

// portOption reads one option of a port. why says what is wrong with it.
func portOption(request *remotegpuv1.PortRequest, option string, now time.Time) (why string) {
	key, value, _ := strings.Cut(option, "=")
	switch {
	case value == "":
		return fmt.Sprintf("option %q has no value", option)
	case key == "allow":
		request.AllowedSources = append(request.AllowedSources, value)
	case key == "description":
		request.Description = value
	case key == "expires":
		after, at, why := parseExpiry(value)
		if after > 0 {
			at = now.Add(after)
		}
		if why != "" {
			return fmt.Sprintf("%q is %s", value, why)
		}
		request.ExpiresAt = nil // never, or the last one counts
		if !at.IsZero() {
			request.ExpiresAt = timestamppb.New(at)
		}
	default:
		return fmt.Sprintf("option %q is none of allow, expires and description", key)
	}
	return ""
}

// portWords takes [PORT:...][SERVICE][:PORT...] apart. why says what is wrong.
func portWords(text string) (service string, before, after []int32, why string) {
	for word := range strings.SplitSeq(text, ":") {
		number, err := strconv.ParseUint(word, 10, 16)
		switch {
		case word == "" && text == "":
			return "", nil, nil, "it names neither a service nor a port"
		case word == "":
			return "", nil, nil, "nothing stands on one side of a colon"
		case err == nil && number == 0:
			return "", nil, nil, "0 is not a port"
		case errors.Is(err, strconv.ErrRange):
			return "", nil, nil, "port " + word + " is above 65535"
		case err == nil && service == "":
			before = append(before, int32(number))
		case err == nil:
			after = append(after, int32(number))
		case strings.Trim(word, "0123456789-") == "":
			return "", nil, nil, word + " is no port; ranges are written as one port each"
		case service != "":
			return "", nil, nil, "it has two services"
		default:
			service = word
		}
	}
	return service, before, after, ""
}
