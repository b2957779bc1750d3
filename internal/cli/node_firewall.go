package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

func (a *app) nodeFirewall() *cobra.Command {
	return group("firewall", "The node's part of the host's packet filter", a.nodeFirewallDiff(), a.nodeFirewallShow())
}

func (a *app) nodeFirewallDiff() *cobra.Command {
	var exitCode bool
	cmd := &cobra.Command{
		Use: "diff", Short: "Show how the host's rules differ from what the node has declared", Args: cobra.NoArgs,
		Long: "Compares the host's packet filter with what the node has declared and changes nothing.\n" +
			"\"-\" is missing, \"+\" is there and should not be, \"!\" is in disorder.\n" +
			"The node mends all of it by itself; \"node info\" shows what it had to mend and who had changed it.\n" +
			"It ends with 0 whether there are differences or not; with --exit-code, as git diff, it ends with 1 when there are.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			response, err := c.node.DiffFirewall(cmd.Context(), &remotegpuv1.DiffFirewallRequest{})
			if err != nil {
				return err
			}
			differs := len(response.GetDifferences()) > 0
			switch {
			case a.output == "json":
				err = a.json(response)
			case !differs:
				err = a.printf("all is as declared\n")
			default:
				err = a.lines(response.GetText())
			}
			if err == nil && differs && exitCode {
				return commandExit(exitDiffers)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "end with 1 when there are differences")
	return cmd
}

func (a *app) nodeFirewallShow() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Show the rules that the node has declared, in the form of iptables-save", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			response, err := c.node.GetFirewall(cmd.Context(), &remotegpuv1.GetFirewallRequest{})
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(response)
			}
			return a.lines(response.GetRules())
		},
	}
}

// lines writes text that has rules of others in it.
func (a *app) lines(text string) error {
	var out strings.Builder
	for line := range strings.Lines(text) {
		out.WriteString(plain(strings.TrimSuffix(line, "\n")) + "\n")
	}
	return a.printf("%s", out.String())
}

// firewallText says how the packet filter is watched and what became of it.
func firewallText(state *remotegpuv1.FirewallState) string {
	if state == nil {
		return ""
	}
	watch := map[string]string{"events": "watched, the kernel tells of changes", "poll": "looked at each few seconds"}[state.GetWatch()]
	text := orElse(watch, "looked at each minute")
	repairs := state.GetLatestRepairs()
	if len(repairs) == 0 {
		return text
	}
	const named = 4
	last := repairs[len(repairs)-1]
	what := last.GetWhat()
	text += fmt.Sprintf("; mended %d times, last %s: %s", state.GetRepairs(), moment(last.GetAt()), strings.Join(what[:min(named, len(what))], ", "))
	if more := len(what) - named; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	if by := last.GetBy(); len(by) > 0 {
		text += " (by " + strings.Join(by, ", ") + ")"
	}
	return text
}
