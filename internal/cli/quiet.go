package cli

import (
	"strings"

	"github.com/spf13/cobra"
)

// quiet is the flag of a list that prints what other commands take, one a line,
// and nothing else.
type quiet struct{ on bool }

// register adds the flag to a list. what names the identifiers, for the help.
func (q *quiet) register(a *app, cmd *cobra.Command, what string) {
	cmd.Flags().BoolVarP(&q.on, "quiet", "q", false, "print only "+what+", one a line, as other commands take them")
	check(cmd, func() error {
		if q.on && a.output == "json" {
			return usagef("leave one of them out", "--quiet and --output json are two ways to print the same list")
		}
		return nil
	})
}

// identifiers prints one identifier a line. What has none is left out, and an
// empty list prints nothing.
func identifiers[T any](a *app, all []T, of func(T) string) error {
	var out strings.Builder
	for _, one := range all {
		if id := of(one); id != "" {
			out.WriteString(plain(id) + "\n")
		}
	}
	return a.printf("%s", out.String())
}
