package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) nodeReconcile() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use: "reconcile", Short: "Bring the node in order now, and show what differed from what should be", Args: cobra.NoArgs,
		Long: "Compares what should be with what is, as the node does by itself in its time, brings it in order and shows what it found.\n" +
			"What is not the node's own is shown and never touched.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			response, err := c.node.Reconcile(cmd.Context(), &remotegpuv1.ReconcileRequest{DryRun: dryRun})
			if err != nil {
				return err
			}
			if a.output == "json" {
				err = a.json(response)
			} else {
				err = a.showFindings(response.GetFindings(), dryRun)
			}
			if err != nil {
				return err
			}
			return failedPass(response)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only show what differs and what would be done")
	return cmd
}

func (a *app) showFindings(findings []*remotegpuv1.Finding, dryRun bool) error {
	if len(findings) == 0 {
		return a.printf("all is as it should be\n")
	}
	rows := make([][]string, 0, len(findings))
	for _, f := range findings {
		rows = append(rows, []string{
			f.GetKind(), f.GetName(), orElse(orElse(f.GetEnvironmentName(), f.GetEnvironment()), "-"), whatBecame(f, dryRun), f.GetMessage(),
		})
	}
	return a.table([]string{"KIND", "NAME", "ENVIRONMENT", "ACTION", "WHAT IS WRONG"}, rows)
}

// whatBecame is what was done about a finding, or would be.
func whatBecame(f *remotegpuv1.Finding, dryRun bool) string {
	action := strings.ToLower(strings.TrimPrefix(f.GetAction().String(), "RECONCILE_ACTION_"))
	switch {
	case !f.GetOurs():
		return "none, not ours"
	case f.GetAction() == remotegpuv1.ReconcileAction_RECONCILE_ACTION_NONE || dryRun:
		return action
	case f.GetDone():
		return action + ", done"
	default:
		return action + " failed: " + f.GetProblem().GetMessage()
	}
}

// failedPass is the failure of a pass that could not see or do all it wanted.
func failedPass(pass *remotegpuv1.ReconcileResponse) error {
	findings := pass.GetFindings()
	if p := pass.GetProblem(); p != nil {
		failed := &failure{Reason: p.GetReason(), Message: "this may not be all: " + p.GetMessage(), exit: exitFailed}
		if p.GetHint() != "" {
			failed.Hints = []string{p.GetHint()}
		}
		return failed
	}
	var failed int
	for _, f := range findings {
		if f.GetProblem() != nil {
			failed++
		}
	}
	if failed == 0 {
		return nil
	}
	return &failure{
		Message: fmt.Sprintf("%d of %d findings could not be brought in order", failed, len(findings)),
		Hints:   []string{"the node tries again each minute"}, exit: exitFailed,
	}
}
