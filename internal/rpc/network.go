package rpc

import (
	"cmp"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/network/policy"
)

func toNetworkPolicy(p *policy.Policy) *remotegpuv1.NetworkPolicy {
	if p == nil {
		return nil
	}
	message := &remotegpuv1.NetworkPolicy{
		Egress: egressModes.toProto[p.Mode()], Groups: p.Groups,
		IngressBitsPerSecond: p.IngressBits, EgressBitsPerSecond: p.EgressBits,
	}
	for _, d := range p.Allow {
		message.Allow = append(message.Allow, &remotegpuv1.EgressDestination{
			Cidr: d.Prefix.String(), Protocol: protocols.toProto[d.Protocol], FirstPort: int32(d.First), LastPort: int32(d.Last),
		})
	}
	return message
}

// fromNetworkPolicy leaves the network of a destination invalid that is none, and
// one with host bits as it is: the domain refuses both by their path.
func fromNetworkPolicy(message *remotegpuv1.NetworkPolicy) *policy.Policy {
	if message == nil {
		return nil
	}
	p := &policy.Policy{
		Egress: egressModes.toDomain[message.GetEgress()], Groups: message.GetGroups(),
		IngressBits: message.GetIngressBitsPerSecond(), EgressBits: message.GetEgressBitsPerSecond(),
	}
	for _, d := range message.GetAllow() {
		prefix, _ := policy.ParsePrefix(d.GetCidr())
		p.Allow = append(p.Allow, policy.Destination{
			Prefix: prefix, Protocol: protocols.toDomain[d.GetProtocol()],
			First: uint16(d.GetFirstPort()), Last: uint16(cmp.Or(d.GetLastPort(), d.GetFirstPort())),
		})
	}
	return p
}
