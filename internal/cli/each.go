package cli

import "context"

// each does the same to one after the other. One that fails does not keep the
// others from being done.
func (a *app) each(ctx context.Context, names []string, do func(name string) error) error {
	var failures []error
	for _, name := range names {
		if ctx.Err() != nil {
			if len(failures) == 0 {
				failures = append(failures, context.Cause(ctx))
			}
			break
		}
		if err := do(name); err != nil {
			failures = append(failures, err)
		}
	}
	return a.firstOf(ctx, failures)
}

// firstOf tells of all failures but the first, which is returned: the program
// ends by telling that, and with its code.
func (a *app) firstOf(ctx context.Context, failures []error) error {
	if len(failures) == 0 {
		return nil
	}
	for _, err := range failures[1:] {
		a.tell(a.explain(ctx, err))
	}
	return failures[0]
}
