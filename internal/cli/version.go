package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/internal/version"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the versions of this program and of the node", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Second)
			defer cancel()
			node := ""
			response, err := c.node.GetNodeInfo(ctx, &remotegpuv1.GetNodeInfoRequest{})
			if err == nil {
				node = response.GetNode().GetVersion()
			} else if cmd.Context().Err() != nil {
				return err
			}
			if a.output == "json" {
				text, err := json.Marshal(map[string]string{"client": version.Version, "node": node})
				if err != nil {
					return fmt.Errorf("write output: %w", err)
				}
				return a.printf("%s\n", text)
			}
			if err != nil {
				// A version is known without a node: no failure.
				node = "unreachable at " + a.addr
			}
			return a.facts([][]string{{"Client", version.Version}, {"Node", node}})
		},
	}
}
