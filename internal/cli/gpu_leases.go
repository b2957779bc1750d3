package cli

import (
	"cmp"
	"strings"

	"github.com/spf13/cobra"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) gpuLeases() *cobra.Command {
	p := &paging{}
	cmd := &cobra.Command{
		Use: "leases [GPU]", Short: "Show who has GPUs and who had them, the latest first", Args: oneOrAll("GPU"),
		Long: `leases shows who has a GPU, or any, and who had it. What has ended is kept for a
year; a GPU that the host does not have any more is named by its UUID.`,
		ValidArgsFunction: a.completeGPUs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			leases, next, err := pages(p, func(size int32, token string) ([]*remotegpuv1.GPULease, string, error) {
				response, err := c.gpus.ListGPULeases(cmd.Context(), &remotegpuv1.ListGPULeasesRequest{
					Gpu: strings.Join(args, ""), PageSize: size, PageToken: token,
				})
				return response.GetLeases(), response.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(&remotegpuv1.ListGPULeasesResponse{Leases: leases, NextPageToken: next})
			}
			return a.leaseTable(leases)
		},
	}
	p.register(a, cmd, 50)
	return cmd
}

func (a *app) leaseTable(leases []*remotegpuv1.GPULease) error {
	rows := make([][]string, 0, len(leases))
	for _, l := range leases {
		until := "now"
		if l.GetReleasedAt() != nil {
			until = moment(l.GetReleasedAt())
		}
		rows = append(rows, []string{
			moment(l.GetCreatedAt()), until, holder(l), l.GetEnvironment(), strings.TrimPrefix(gpuText(l), l.GetGpu()+" "), l.GetGpu(),
		})
	}
	return a.table([]string{"FROM", "UNTIL", "ENVIRONMENT", "ID", "HAD", "GPU"}, rows)
}

// holder names who has, or had, a lease.
func holder(l *remotegpuv1.GPULease) string {
	name := cmp.Or(l.GetEnvironmentName(), l.GetEnvironment())
	if l.GetEnvironmentDeleted() {
		name += " (deleted)"
	}
	return name
}
