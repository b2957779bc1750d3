package rpc

import (
	"context"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

var reconcileActions = newEnum(map[remotegpuv1.ReconcileAction]runtime.Action{
	remotegpuv1.ReconcileAction_RECONCILE_ACTION_NONE:    runtime.ActionNone,
	remotegpuv1.ReconcileAction_RECONCILE_ACTION_RECORD:  runtime.ActionRecord,
	remotegpuv1.ReconcileAction_RECONCILE_ACTION_RELEASE: runtime.ActionRelease,
	remotegpuv1.ReconcileAction_RECONCILE_ACTION_REMOVE:  runtime.ActionRemove,
	remotegpuv1.ReconcileAction_RECONCILE_ACTION_MEND:    runtime.ActionMend,
})

// Reconcile implements the RPC.
func (s *nodeService) Reconcile(ctx context.Context, req *remotegpuv1.ReconcileRequest) (*remotegpuv1.ReconcileResponse, error) {
	findings, err := s.cfg.Manager.ReconcileNow(ctx, req.GetDryRun())
	if err != nil && len(findings) == 0 {
		return nil, err
	}
	// What was found is shown all the same: it may have been acted upon.
	res := &remotegpuv1.ReconcileResponse{Findings: make([]*remotegpuv1.Finding, 0, len(findings)), Problem: toProblem(operation.ProblemOf(err))}
	for i := range findings {
		f := &findings[i]
		res.Findings = append(res.Findings, &remotegpuv1.Finding{
			Kind: string(f.Kind), Name: f.Name, Environment: f.EnvID, EnvironmentName: f.EnvName, Message: f.Message,
			Action: reconcileActions.toProto[f.Action], Ours: f.Ours, Done: f.Done, Problem: toProblem(f.Problem),
		})
	}
	return res, nil
}
