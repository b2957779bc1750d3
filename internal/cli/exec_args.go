package cli

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// execArgs puts the -- of env exec where nobody has: before the second of what
// are no flags, which is the command. What follows it is the command's then, as
// with docker exec, while our own flags may come behind the name too.
func execArgs(root *cobra.Command, args []string) []string {
	cmd, rest, err := root.Find(args)
	if err != nil || cmd.CommandPath() != "remotegpu env exec" || slices.Contains(rest, "--") {
		return args
	}
	cmd.InheritedFlags() // has Flags know those of the parents too
	names := 0
	for i := 0; i < len(rest); i++ {
		switch {
		case len(rest[i]) > 1 && rest[i][0] == '-':
			if takesNext(cmd, rest[i]) {
				i++
			}
		case names == 0:
			names++
		default:
			return slices.Concat([]string{"env", "exec"}, rest[:i], []string{"--"}, rest[i:])
		}
	}
	return args
}

// takesNext says that the value of a flag, or of the last of several short ones,
// is the next argument.
func takesNext(cmd *cobra.Command, arg string) bool {
	if name, long := strings.CutPrefix(arg, "--"); long {
		flag := cmd.Flags().Lookup(name) // none with a value behind a =
		return flag != nil && flag.NoOptDefVal == ""
	}
	for i := 1; i < len(arg); i++ {
		flag := cmd.Flags().ShorthandLookup(arg[i : i+1])
		switch {
		case flag == nil:
			return false
		case flag.NoOptDefVal == "":
			return i == len(arg)-1
		}
	}
	return false
}
