package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) nodeCommand() *cobra.Command {
	return group("node", "The node itself", a.nodeInfo(), a.nodeReconcile(), a.nodeFirewall())
}

func (a *app) nodeInfo() *cobra.Command {
	return &cobra.Command{
		Use: "info", Short: "Show what the node is, what it runs on and how it is", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			response, err := c.node.GetNodeInfo(cmd.Context(), &remotegpuv1.GetNodeInfoRequest{})
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(response.GetNode())
			}
			return a.showNode(response.GetNode())
		},
	}
}

func (a *app) showNode(node *remotegpuv1.Node) error {
	engine := node.GetContainerd()
	containerd := fmt.Sprintf("%s at %s, namespace %s, snapshotter %s",
		orElse(engine.GetVersion(), "unreachable"), engine.GetAddress(), engine.GetNamespace(), engine.GetSnapshotter())
	var counts []string
	for name, count := range node.GetEnvironments() {
		counts = append(counts, fmt.Sprintf("%d %s", count, name))
	}
	slices.Sort(counts)
	rows := [][]string{
		{"Name", node.GetName()},
		{"Id", node.GetId()},
		{"Labels", pairs(node.GetLabels())},
		{"Version", node.GetVersion()},
		{"Started", moment(node.GetStartedAt())},
		{"System", fmt.Sprintf("%s, Linux %s, %s", node.GetOs(), node.GetKernel(), node.GetArchitecture())},
		{"CPUs", fmt.Sprint(node.GetCpus())},
		{"Memory", size(node.GetMemoryBytes())},
		{"containerd", containerd},
		{"cgroup", node.GetCgroup()},
		{"iptables", node.GetIptables()},
		{"Firewall", firewallText(node.GetFirewall())},
		{"Addresses", strings.TrimSpace(node.GetAddressRange() + " " + node.GetAddressRange6())},
		{"GPUs", gpusText(node.GetGpus())},
		{"Disk limits", diskQuotaText(node.GetDiskQuota())},
		{"Gateway", node.GetGatewayUrl()},
		{"Environments", orElse(strings.Join(counts, ", "), "none")},
	}
	for _, condition := range node.GetConditions() {
		rows = append(rows, []string{"Problem", fmt.Sprintf("%s (%s)", condition.GetMessage(), condition.GetReason())},
			[]string{"Try", condition.GetHint()})
	}
	return a.facts(rows)
}

// gpusText sums the GPUs of a node up.
func gpusText(gpus *remotegpuv1.NodeGPUs) string {
	if gpus.GetCount() == 0 {
		return ""
	}
	text := fmt.Sprintf("%d, %d free: %s", gpus.GetCount(), gpus.GetFree(), strings.Join(gpus.GetModels(), ", "))
	if gpus.GetDriver() != "" {
		text += "; driver " + gpus.GetDriver()
	}
	return text
}

// diskQuotaText says whether writable layers can be limited.
func diskQuotaText(quota *remotegpuv1.DiskQuota) string {
	switch {
	case quota == nil:
		return ""
	case quota.GetSupported():
		return fmt.Sprintf("%s on %s", quota.GetMethod(), quota.GetFilesystem())
	default:
		return "not enforceable, because " + quota.GetReason()
	}
}
