package rpc

import (
	"context"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
)

type snapshotService services

var snapshotStates = newEnum(map[remotegpuv1.SnapshotState]runtime.SnapshotState{
	remotegpuv1.SnapshotState_SNAPSHOT_STATE_CREATING: runtime.SnapshotCreating,
	remotegpuv1.SnapshotState_SNAPSHOT_STATE_READY:    runtime.SnapshotReady,
	remotegpuv1.SnapshotState_SNAPSHOT_STATE_DELETING: runtime.SnapshotDeleting,
})

func (s *snapshotService) base() *services { return (*services)(s) }

// CreateSnapshot implements the RPC.
func (s *snapshotService) CreateSnapshot(ctx context.Context, req *remotegpuv1.CreateSnapshotRequest) (*remotegpuv1.CreateSnapshotResponse, error) {
	snapshot, op, err := s.cfg.Manager.CreateSnapshot(ctx, runtime.CreateSnapshotRequest{
		RequestID: req.GetRequestId(), Project: req.GetProject(), Environment: req.GetEnvironment(), Name: req.GetName(),
		Labels: req.GetLabels(), Etag: req.GetEtag(),
	})
	if err != nil {
		return nil, err
	}
	_, op, err = s.base().await(ctx, nil, op, req.GetWait())
	if err != nil {
		return nil, err
	}
	if snapshot != nil && req.GetWait().AsDuration() > 0 {
		now, err := s.cfg.Manager.Snapshot(ctx, snapshot.Project, snapshot.ID)
		if p := problem.Of(err); p != nil && p.Reason != problem.SnapshotNotFound {
			return nil, err
		}
		snapshot = now // nil when somebody has deleted it by now
	}
	return &remotegpuv1.CreateSnapshotResponse{Snapshot: toSnapshot(snapshot), Operation: s.base().toOperation(op)}, nil
}

// GetSnapshot implements the RPC.
func (s *snapshotService) GetSnapshot(ctx context.Context, req *remotegpuv1.GetSnapshotRequest) (*remotegpuv1.GetSnapshotResponse, error) {
	snapshot, err := s.cfg.Manager.Snapshot(ctx, req.GetProject(), req.GetSnapshot())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.GetSnapshotResponse{Snapshot: toSnapshot(snapshot)}, nil
}

// ListSnapshots implements the RPC.
func (s *snapshotService) ListSnapshots(ctx context.Context, req *remotegpuv1.ListSnapshotsRequest) (*remotegpuv1.ListSnapshotsResponse, error) {
	selector, err := runtime.ParseSelector(req.GetLabelSelector(), "label_selector")
	if err != nil {
		return nil, err
	}
	snapshots, next, err := s.cfg.Manager.ListSnapshots(ctx, req.GetEnvironment(), runtime.SnapshotFilter{
		Project: req.GetProject(), Labels: selector, Limit: pageSize(req.GetPageSize()), After: req.GetPageToken(),
	})
	if err != nil {
		return nil, err
	}
	res := &remotegpuv1.ListSnapshotsResponse{NextPageToken: next}
	for _, snapshot := range snapshots {
		res.Snapshots = append(res.Snapshots, toSnapshot(snapshot))
	}
	return res, nil
}

// DeleteSnapshot implements the RPC.
func (s *snapshotService) DeleteSnapshot(ctx context.Context, req *remotegpuv1.DeleteSnapshotRequest) (*remotegpuv1.DeleteSnapshotResponse, error) {
	if err := s.cfg.Manager.DeleteSnapshot(ctx, req.GetProject(), req.GetSnapshot(), req.GetEtag()); err != nil {
		return nil, err
	}
	return &remotegpuv1.DeleteSnapshotResponse{Snapshot: req.GetSnapshot()}, nil
}

// RollBackEnvironment implements the RPC.
func (s *snapshotService) RollBackEnvironment(ctx context.Context, req *remotegpuv1.RollBackEnvironmentRequest) (*remotegpuv1.RollBackEnvironmentResponse, error) {
	ask := runtime.RollBackRequest{
		RequestID: req.GetRequestId(), Project: req.GetProject(), Environment: req.GetEnvironment(), Snapshot: req.GetSnapshot(),
		Etag: req.GetEtag(), Force: req.GetForce(),
	}
	if req.GetTimeout() != nil {
		timeout := req.GetTimeout().AsDuration()
		ask.Timeout = &timeout
	}
	env, op, err := s.cfg.Manager.RollBack(ctx, ask)
	if err != nil {
		return nil, err
	}
	env, op, err = s.base().await(ctx, env, op, req.GetWait())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.RollBackEnvironmentResponse{Environment: toEnvironment(env), Operation: s.base().toOperation(op)}, nil
}

// ExportSnapshot implements the RPC.
func (s *snapshotService) ExportSnapshot(ctx context.Context, req *remotegpuv1.ExportSnapshotRequest) (*remotegpuv1.ExportSnapshotResponse, error) {
	reference, op, err := s.cfg.Manager.Export(ctx, runtime.ExportRequest{
		RequestID: req.GetRequestId(), Project: req.GetProject(), Snapshot: req.GetSnapshot(), Reference: req.GetReference(),
	})
	if err != nil {
		return nil, err
	}
	_, op, err = s.base().await(ctx, nil, op, req.GetWait())
	if err != nil {
		return nil, err
	}
	return &remotegpuv1.ExportSnapshotResponse{Reference: reference, Operation: s.base().toOperation(op)}, nil
}

func toSnapshot(s *runtime.Snapshot) *remotegpuv1.Snapshot {
	if s == nil {
		return nil
	}
	spec := s.Spec
	if !spec.OwnHostname {
		spec.Hostname = s.EnvName // it follows the name, which may be another one by now
	}
	return &remotegpuv1.Snapshot{
		Id: s.ID, Name: s.Name, Project: s.Project, Node: s.Node, Labels: s.Labels, Etag: runtime.Etag(s.Revision),
		Environment: s.EnvID, EnvironmentName: s.EnvName, EnvironmentDeleted: s.EnvDeleted, State: snapshotStates.toProto[s.State], Operation: s.Operation,
		Parent: s.Layer.Parent, SizeBytes: s.Layer.Size, Image: s.Layer.Image, ImageDigest: s.Layer.ImageDigest,
		TakenRunning: s.Method == runtime.SnapshotCopy, Spec: toSpec(&spec), CreatedAt: timestamp(s.CreatedAt),
	}
}
