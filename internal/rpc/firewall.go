package rpc

import (
	"context"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/network"
	"github.com/remotegpu/remotegpu/network/firewall"
)

// Firewall shows the host's rules next to what was declared. Errors are
// FIREWALL_FAILED.
type Firewall interface {
	// Differences tells how the host's rules differ from what was declared.
	Differences(ctx context.Context) ([]firewall.Difference, error)
	// Rules is what was declared, in the form of iptables-save.
	Rules(ctx context.Context) (string, error)
}

var differenceKinds = newEnum(map[remotegpuv1.FirewallDifferenceKind]firewall.DifferenceKind{
	remotegpuv1.FirewallDifferenceKind_FIREWALL_DIFFERENCE_KIND_MISSING:    firewall.Missing,
	remotegpuv1.FirewallDifferenceKind_FIREWALL_DIFFERENCE_KIND_UNEXPECTED: firewall.Unexpected,
	remotegpuv1.FirewallDifferenceKind_FIREWALL_DIFFERENCE_KIND_MISORDERED: firewall.Misordered,
})

// DiffFirewall implements the RPC.
func (s *nodeService) DiffFirewall(ctx context.Context, _ *remotegpuv1.DiffFirewallRequest) (*remotegpuv1.DiffFirewallResponse, error) {
	differences, err := s.cfg.Firewall.Differences(ctx)
	if err != nil {
		return nil, err
	}
	res := &remotegpuv1.DiffFirewallResponse{Differences: make([]*remotegpuv1.FirewallDifference, 0, len(differences))}
	var text strings.Builder
	for _, d := range differences {
		text.WriteString(d.String() + "\n")
		res.Differences = append(res.Differences, &remotegpuv1.FirewallDifference{
			Kind: differenceKinds.toProto[d.Kind], Table: d.Table, Chain: d.Chain, Rule: d.Rule, Environment: d.EnvID,
		})
	}
	res.Text = text.String()
	return res, nil
}

// GetFirewall implements the RPC.
func (s *nodeService) GetFirewall(ctx context.Context, _ *remotegpuv1.GetFirewallRequest) (*remotegpuv1.GetFirewallResponse, error) {
	rules, err := s.cfg.Firewall.Rules(ctx)
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.GetFirewallResponse{Rules: rules}, nil
}

func toFirewallState(repairs network.Repairs) *remotegpuv1.FirewallState {
	state := &remotegpuv1.FirewallState{Watch: repairs.Watch, Repairs: repairs.Count}
	for _, repair := range repairs.Latest {
		state.LatestRepairs = append(state.LatestRepairs, &remotegpuv1.FirewallRepair{
			At: timestamp(repair.At), What: repair.What, By: repair.By, Took: durationpb.New(repair.Took),
		})
	}
	return state
}
