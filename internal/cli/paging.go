package cli

import (
	"github.com/spf13/cobra"
)

// paging are the flags of a list.
type paging struct {
	limit     int
	pageSize  int32
	pageToken string
	more      bool // there is more than the limit let through
}

func (p *paging) register(a *app, cmd *cobra.Command, limit int) {
	p.limit = limit
	flags := cmd.Flags()
	flags.Var(count[int]{&p.limit}, "limit", "list at most this many; 0 lists all")
	flags.Var(count[int32]{&p.pageSize}, "page-size", "fetch one page of this many only; json has the token of the next")
	flags.StringVar(&p.pageToken, "page-token", "", "fetch the page of this token only")
	check(cmd, func() error {
		if flags.Changed("limit") && (flags.Changed("page-size") || flags.Changed("page-token")) {
			return usagef("give one of them: --page-size says how many one page has", "--limit counts over all pages, --page-size and --page-token fetch one")
		}
		return nil
	})
	// Who sets a limit knows of it; who sets none may take the list for all.
	cmd.PostRun = func(*cobra.Command, []string) {
		if p.more && !flags.Changed("limit") {
			a.say("there are more than these %d; --limit 0 lists all", p.limit)
		}
	}
}

// check adds a check of what was given to those that a command makes before it
// begins.
func check(cmd *cobra.Command, of func() error) {
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if before != nil {
			if err := before(cmd, args); err != nil {
				return err
			}
		}
		return of()
	}
}

// pages fetches page after page, or the one page that was asked for. It
// returns the token of what was not fetched.
func pages[T any](p *paging, fetch func(size int32, token string) ([]T, string, error)) ([]T, string, error) {
	if p.pageSize > 0 || p.pageToken != "" {
		return fetch(p.pageSize, p.pageToken)
	}
	var all []T
	token := ""
	for {
		size := int32(500)
		if p.limit > 0 {
			size = int32(min(p.limit-len(all), 500))
		}
		page, next, err := fetch(size, token)
		if err != nil {
			return nil, "", err
		}
		all = append(all, page...)
		if next == "" || p.limit > 0 && len(all) >= p.limit {
			p.more = next != ""
			return all, next, nil
		}
		token = next
	}
}

// filters says which flags select what is listed. One that is given and names
// nothing is refused: a variable that is not set would list everything.
func filters(cmd *cobra.Command, names ...string) {
	check(cmd, func() error {
		for _, name := range names {
			flag := cmd.Flag(name)
			value := flag.Value.String()
			if flag.Changed && (value == "" || value == "[]" || value == "0" && flag.Value.Type() == "int32") {
				return usagef("leave it out to list all", "--%s is given and names nothing", name)
			}
		}
		return nil
	})
}

// oneOrAll takes the name of what a list is about, or none for all. An empty one
// is refused, as an empty filter is.
func oneOrAll(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 && args[0] == "" {
			return usagef("leave it out to list all", "the name of the %s is empty", what)
		}
		return cobra.MaximumNArgs(1)(cmd, args)
	}
}
