package cli

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) envStats() *cobra.Command {
	request := &remotegpuv1.GetStatsRequest{}
	cmd := &cobra.Command{
		Use: "stats [NAME...]", Short: "Show what environments use right now", ValidArgsFunction: a.completeEnvs,
		Long: `stats shows CPU, memory, network, block device and process use of the named
environments, or of all that run: those of all projects unless --project says
one. CPU is in percent of one CPU. MEMORY is the working set: without file caches
that can be given up.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			request.Environments, request.Project = args, a.project
			return a.showStatsOnce(cmd, c, request)
		},
	}
	cmd.Flags().BoolVar(&request.Disk, "disk", false, "measure the writable layers too, which may take a while")
	return cmd
}

func (a *app) showStatsOnce(cmd *cobra.Command, c *clients, request *remotegpuv1.GetStatsRequest) error {
	response, err := c.environments.GetStats(cmd.Context(), request)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.json(response)
	}
	return a.statsTable(response.GetStats(), request.GetDisk())
}

// gpuStatsText is the use of an environment's GPUs: of their time on average,
// and of their memory together.
func gpuStatsText(gpus []*remotegpuv1.GPUStats) []string {
	if len(gpus) == 0 {
		return []string{"-", "-"}
	}
	util, told, used, limit, unknown := 0, 0, uint64(0), uint64(0), false
	for _, g := range gpus {
		unknown = unknown || g.GetMemoryUnknown()
		used, limit = used+g.GetMemoryBytes(), limit+g.GetMemoryLimitBytes()
		if g.UtilPercent != nil {
			util, told = util+int(g.GetUtilPercent()), told+1
		}
	}
	share, memory := "-", size(int64(used))
	if told > 0 {
		share = fmt.Sprintf("%d%%", util/told)
	}
	if unknown {
		memory = "?"
	}
	if limit > 0 {
		memory += " of " + size(int64(limit))
	}
	return []string{share, memory}
}

func (a *app) envTop() *cobra.Command {
	var interval time.Duration
	var once, disk bool
	cmd := &cobra.Command{
		Use: "top [NAME...]", Short: "Show what environments use, again and again", ValidArgsFunction: a.completeEnvs,
		Long: `top shows what the named environments use, or all that run, until it is
interrupted: on a terminal in place, elsewhere one table after the other, with
-o json one line for each. All are those of all projects unless --project says one.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			if once {
				return a.showStatsOnce(cmd, c, &remotegpuv1.GetStatsRequest{Environments: args, Project: a.project, Disk: disk})
			}
			return a.followStats(cmd, c, &remotegpuv1.WatchStatsRequest{
				Environments: args, Project: a.project, Interval: durationpb.New(interval), Disk: disk,
			})
		},
	}
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "time between two tables, 100ms to 1h")
	cmd.Flags().BoolVar(&once, "no-stream", false, "show it once")
	cmd.Flags().BoolVar(&disk, "disk", false, "measure the writable layers too, each at most every 10 s")
	return cmd
}

// clearScreen puts the cursor into the first column of the first line and
// clears what is below (ECMA-48 CUP and ED).
const clearScreen = "\x1b[H\x1b[J"

func (a *app) followStats(cmd *cobra.Command, c *clients, request *remotegpuv1.WatchStatsRequest) error {
	stream, err := c.environments.WatchStats(cmd.Context(), request)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // read to its end, or abandoned
	terminal := onTerminal(a.stdout)
	for first := true; ; first = false {
		message, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return &failure{
				Code: "unavailable", Message: "the node ended the stream",
				Hints: []string{"start it again"}, exit: exitUnavailable,
			}
		}
		if err != nil {
			return err
		}
		switch {
		case a.output == "json":
			if err := a.jsonLine(message); err != nil {
				return err
			}
			continue
		case terminal:
			err = a.printf(clearScreen)
		case !first:
			err = a.printf("\n")
		}
		if err != nil {
			return err
		}
		if err := a.statsTable(message.GetStats(), request.GetDisk()); err != nil {
			return err
		}
	}
}

func (a *app) statsTable(all []*remotegpuv1.Stats, disk bool) error {
	// The project is said where it says something.
	projects := slices.ContainsFunc(all, func(s *remotegpuv1.Stats) bool { return s.GetProject() != "" && s.GetProject() != "default" })
	header := []string{"NAME", "CPU", "MEMORY", "LIMIT", "NET IN", "NET OUT", "BLOCK READ", "BLOCK WRITE", "PIDS"}
	if projects {
		header = slices.Insert(header, 1, "PROJECT")
	}
	if disk {
		header = append(header, "DISK")
	}
	gpus := slices.ContainsFunc(all, func(s *remotegpuv1.Stats) bool { return len(s.GetGpus()) > 0 })
	if gpus {
		header = append(header, "GPU", "GPU MEMORY")
	}
	rows := make([][]string, 0, len(all))
	for _, s := range all {
		limit := "-"
		if s.GetMemoryLimitBytes() > 0 {
			limit = size(s.GetMemoryLimitBytes())
		}
		row := []string{
			s.GetName(), fmt.Sprintf("%.1f%%", float64(s.GetCpuMillis())/10), size(s.GetMemoryWorkingSetBytes()), limit,
			size(s.GetNetworkReceiveBytes()), size(s.GetNetworkTransmitBytes()), size(s.GetBlockReadBytes()), size(s.GetBlockWriteBytes()),
			fmt.Sprint(s.GetPids()),
		}
		if projects {
			row = slices.Insert(row, 1, dash(s.GetProject()))
		}
		if disk {
			used := "-"
			if s.DiskBytes != nil {
				used = size(s.GetDiskBytes())
			}
			if s.GetDiskLimitBytes() > 0 {
				used += " of " + size(s.GetDiskLimitBytes())
			}
			row = append(row, used)
		}
		if gpus {
			row = append(row, gpuStatsText(s.GetGpus())...)
		}
		rows = append(rows, row)
	}
	return a.table(header, rows)
}
