package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

const snapshotHelp = `A snapshot is the root filesystem of an environment as it was at a moment:
what was written on top of its image, installed packages included. What is
mounted is not in it: volumes, host directories, tmpfs, and the files of the
desktop.

Snapshots are named ENVIRONMENT/NAME or by their id. They are kept until they
are deleted, also when their environment is. Those of a deleted environment are
still named so, unless a new one of that name, or another deleted one, has a
snapshot of the same name: then by their id, as rm names them once there is a
new one at all.`

func (a *app) envSnapshot() *cobra.Command {
	cmd := group("snapshot", "Snapshots of environments", a.snapshotCreate(), a.snapshotList(), a.snapshotGet(), a.snapshotRemove(),
		a.snapshotRollBack(), a.snapshotExport())
	cmd.Long = snapshotHelp
	return cmd
}

func (a *app) snapshotCreate() *cobra.Command {
	request, w := &remotegpuv1.CreateSnapshotRequest{}, &waiting{}
	var labels []string
	cmd := &cobra.Command{
		Use: "create ENVIRONMENT", Short: "Take a snapshot", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeEnvs,
		Long: `create takes a snapshot. An environment that runs is paused while the files that
it has changed are copied, with their holes filled; of one that does not,
nothing is copied at all.`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			c, err := a.dial()
			if err != nil {
				return err
			}
			request.Environment, request.Project, request.RequestId = args[0], a.project, w.id()
			if request.Labels, err = keyValues("label", labels); err != nil {
				return err
			}
			s, err := a.takeSnapshot(cmd.Context(), c, request, w)
			if err != nil {
				return err
			}
			return a.showSnapshot(s)
		},
	}
	w.register(cmd.Flags())
	cmd.Flags().StringVar(&request.Name, "name", "", "name of the snapshot (default: the time)")
	cmd.Flags().StringArrayVarP(&labels, "label", "l", nil, "label KEY=VALUE")
	etagFlag(cmd.Flags(), &request.Etag)
	return cmd
}

// takeSnapshot takes a snapshot and returns it as it is then.
func (a *app) takeSnapshot(ctx context.Context, c *clients, request *remotegpuv1.CreateSnapshotRequest, w *waiting) (*remotegpuv1.Snapshot, error) {
	response, err := c.snapshots.CreateSnapshot(ctx, request)
	if err != nil {
		return nil, err
	}
	if _, err := a.await(ctx, c, w, response.GetOperation()); err != nil || w.noWait {
		return response.GetSnapshot(), err
	}
	return a.snapshot(ctx, c, response.GetSnapshot().GetId())
}

func (a *app) snapshot(ctx context.Context, c *clients, name string) (*remotegpuv1.Snapshot, error) {
	response, err := c.snapshots.GetSnapshot(ctx, &remotegpuv1.GetSnapshotRequest{Snapshot: name, Project: a.project})
	return response.GetSnapshot(), err
}

func (a *app) showSnapshot(s *remotegpuv1.Snapshot) error {
	if a.output == "json" {
		return a.json(s)
	}
	taken := "while it did not run"
	if s.GetTakenRunning() {
		taken = "while it ran"
	}
	return a.facts([][]string{
		{"Snapshot", s.GetEnvironmentName() + "/" + s.GetName()},
		{"Id", s.GetId()},
		{"Project", s.GetProject()},
		{"Node", s.GetNode()},
		{"State", state(s.GetState(), "SNAPSHOT_STATE_")},
		{"Operation", s.GetOperation()},
		{"Environment", snapshotEnvironment(s, s.GetEnvironment())},
		{"Taken", taken},
		{"Size", size(s.GetSizeBytes())},
		{"On top of", s.GetParent()},
		{"Image", s.GetImage()},
		{"Digest", s.GetImageDigest()},
		{"Labels", pairs(s.GetLabels())},
		{"Created", moment(s.GetCreatedAt())},
	})
}

func (a *app) snapshotList() *cobra.Command {
	request := &remotegpuv1.ListSnapshotsRequest{}
	var page paging
	var q quiet
	cmd := &cobra.Command{
		Use: "ls [ENVIRONMENT]", Aliases: []string{"list"}, Short: "List snapshots, oldest first", Args: oneOrAll("environment"),
		Long: `ls lists snapshots, oldest first. Where ENVIRONMENT is "(deleted)", a name means
the snapshot of an environment that there is now, if that has one of that name.`,
		ValidArgsFunction: a.completeEnvs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			request.Project, request.Environment = a.project, strings.Join(args, "")
			all, next, err := pages(&page, func(size int32, token string) ([]*remotegpuv1.Snapshot, string, error) {
				request.PageSize, request.PageToken = size, token
				response, err := c.snapshots.ListSnapshots(cmd.Context(), request)
				return response.GetSnapshots(), response.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			if q.on {
				return identifiers(a, all, (*remotegpuv1.Snapshot).GetId)
			}
			if a.output == "json" {
				return a.json(&remotegpuv1.ListSnapshotsResponse{Snapshots: all, NextPageToken: next})
			}
			rows := make([][]string, 0, len(all))
			for _, s := range all {
				rows = append(rows, []string{
					s.GetEnvironmentName() + "/" + s.GetName(), s.GetId(), snapshotEnvironment(s, s.GetEnvironmentName()), state(s.GetState(), "SNAPSHOT_STATE_"), size(s.GetSizeBytes()),
					s.GetImage(), age(s.GetCreatedAt()),
				})
			}
			return a.table([]string{"SNAPSHOT", "ID", "ENVIRONMENT", "STATE", "SIZE", "IMAGE", "AGE"}, rows)
		},
	}
	cmd.Flags().StringVarP(&request.LabelSelector, "selector", "l", "", "only with these labels: key=value,key!=value,key,!key")
	page.register(a, cmd, 0)
	q.register(a, cmd, "ids")
	filters(cmd, "selector")
	return cmd
}

// snapshotEnvironment is the name or id of a snapshot's environment, and
// whether it is gone.
func snapshotEnvironment(s *remotegpuv1.Snapshot, called string) string {
	if s.GetEnvironmentDeleted() {
		return called + " (deleted)"
	}
	return called
}

func (a *app) snapshotGet() *cobra.Command {
	return &cobra.Command{
		Use: "get SNAPSHOT", Short: "Show one snapshot", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeSnapshots,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			s, err := a.snapshot(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			return a.showSnapshot(s)
		},
	}
}

func (a *app) snapshotRemove() *cobra.Command {
	request := &remotegpuv1.DeleteSnapshotRequest{}
	cmd := &cobra.Command{
		Use: "rm SNAPSHOT...", Aliases: []string{"delete"}, Short: "Delete snapshots", Args: cobra.MinimumNArgs(1),
		Long: `rm deletes snapshots. Environments and snapshots that build on one go on as
before; its files stay on the disk until the last of those has gone.`,
		ValidArgsFunction: a.completeSnapshots,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), args, func(name string) error {
				request.Snapshot, request.Project = name, a.project
				response, err := c.snapshots.DeleteSnapshot(cmd.Context(), request)
				if err != nil {
					return err
				}
				if a.output == "json" {
					return a.jsonLine(response)
				}
				return a.printf("%s: deleted\n", plain(name))
			})
		},
	}
	etagFlag(cmd.Flags(), &request.Etag)
	return cmd
}

func (a *app) snapshotRollBack() *cobra.Command {
	request, w, g := &remotegpuv1.RollBackEnvironmentRequest{}, &waiting{}, &grace{}
	cmd := &cobra.Command{
		Use: "rollback ENVIRONMENT SNAPSHOT", Short: "Make an environment what it was", Args: cobra.ExactArgs(2),
		Long: `rollback makes the root filesystem of an environment what it was in one of its
snapshots, or in the one that it was made from. What was written since is gone:
take a snapshot first to keep it.`,
		ValidArgsFunction: inTurn(a.completeEnvs, a.completeSnapshotsOf),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			request.Environment, request.Snapshot, request.Project, request.RequestId = args[0], args[1], a.project, w.id()
			request.Timeout = g.duration()
			response, err := c.snapshots.RollBackEnvironment(cmd.Context(), request)
			if err != nil {
				return err
			}
			return a.lead(cmd.Context(), c, begun{name: args[0], e: response.GetEnvironment(), op: response.GetOperation()}, "rolled back to "+plain(args[1]), w)
		},
	}
	w.register(cmd.Flags())
	g.register(cmd.Flags())
	cmd.Flags().BoolVarP(&request.Force, "force", "f", false, "also one that runs: it is stopped, and started again afterwards")
	etagFlag(cmd.Flags(), &request.Etag)
	return cmd
}

func (a *app) snapshotExport() *cobra.Command {
	request, w := &remotegpuv1.ExportSnapshotRequest{}, &waiting{}
	cmd := &cobra.Command{
		Use: "export SNAPSHOT [IMAGE]", Short: "Make an image of a snapshot", Args: cobra.RangeArgs(1, 2),
		Long: `export makes an image of the node's store of a snapshot and prints its reference:
IMAGE, or remotegpu/snapshot/ENVIRONMENT:NAME, which of a project other than
default is remotegpu/snapshot/PROJECT/ENVIRONMENT:NAME. An image that had the
reference loses it. Holes of files are zeros in it, compressed, and take their whole length
where it is unpacked.`,
		ValidArgsFunction: a.completeSnapshots,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			request.Snapshot, request.Reference = args[0], strings.Join(args[1:], "")
			request.Project, request.RequestId = a.project, w.id()
			response, err := c.snapshots.ExportSnapshot(cmd.Context(), request)
			if err != nil {
				return err
			}
			op, err := a.await(cmd.Context(), c, w, response.GetOperation())
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(&remotegpuv1.ExportSnapshotResponse{Reference: response.GetReference(), Operation: op})
			}
			return a.printf("%s\n", plain(response.GetReference()))
		},
	}
	w.register(cmd.Flags())
	return cmd
}

// completeSnapshots offers snapshots: by name, or by id where the name is that of
// another one.
func (a *app) completeSnapshots(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.offer(cmd, args, prefix, func(ctx context.Context, c *clients) ([]cobra.Completion, error) {
		response, err := c.snapshots.ListSnapshots(ctx, &remotegpuv1.ListSnapshotsRequest{Project: a.project, PageSize: 500})
		named := make(map[string]int)
		for _, s := range response.GetSnapshots() {
			named[s.GetEnvironmentName()+"/"+s.GetName()]++
		}
		var found []cobra.Completion
		for _, s := range response.GetSnapshots() {
			name, what := s.GetEnvironmentName()+"/"+s.GetName(), s.GetImage()
			if named[name] > 1 && s.GetEnvironmentDeleted() {
				name, what = s.GetId(), name+" of a deleted environment"
			}
			found = append(found, cobra.CompletionWithDesc(name, plain(what)))
		}
		return found, err
	})
}

// completeSnapshotsOf offers the snapshots of the environment that is named
// first, by what they are called among them.
func (a *app) completeSnapshotsOf(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.offer(cmd, nil, prefix, func(ctx context.Context, c *clients) ([]cobra.Completion, error) {
		response, err := c.snapshots.ListSnapshots(ctx, &remotegpuv1.ListSnapshotsRequest{
			Project: orElse(a.project, "default"), Environment: args[0], PageSize: 500,
		})
		var found []cobra.Completion
		for _, s := range response.GetSnapshots() {
			if !s.GetEnvironmentDeleted() { // another one that was called so
				found = append(found, cobra.CompletionWithDesc(s.GetName(), age(s.GetCreatedAt())+" old, "+size(s.GetSizeBytes())))
			}
		}
		return found, err
	})
}
