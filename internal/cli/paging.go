package cli

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// paging are the flags of a list.
type paging struct {
	limit     int
	pageSize  int32
	pageToken string
}

func (p *paging) register(flags *pflag.FlagSet, limit int) {
	p.limit = limit
	flags.Var(count[int]{&p.limit}, "limit", "list at most this many; 0 lists all")
	flags.Var(count[int32]{&p.pageSize}, "page-size", "fetch one page of this many only; json has the token of the next")
	flags.StringVar(&p.pageToken, "page-token", "", "fetch the page of this token only")
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
			return all, next, nil
		}
		token = next
	}
}

// filters says which flags select what is listed. One that is given and names
// nothing is refused: a variable that is not set would list everything.
func filters(cmd *cobra.Command, names ...string) {
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		for _, name := range names {
			flag := cmd.Flag(name)
			if value := flag.Value.String(); flag.Changed && (value == "" || value == "[]" || value == "0") {
				return usagef("leave it out to list all", "--%s is given and names nothing", name)
			}
		}
		if before == nil {
			return nil
		}
		return before(cmd, args)
	}
}
