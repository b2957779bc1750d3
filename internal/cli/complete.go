package cli

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// completeTime is how long a shell waits for an answer to the tab key.
const completeTime = 2 * time.Second

// complete offers fixed values for a flag.
func (a *app) complete(cmd *cobra.Command, flag string, values ...string) {
	a.completeWith(cmd, flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// completeWith offers values for a flag. The flag is there: the only error is
// that it is not.
func (a *app) completeWith(cmd *cobra.Command, flag string, values cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, values); err != nil {
		panic(err)
	}
}

// completeEnvs offers the names of environments, with their states.
func (a *app) completeEnvs(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.completeEnvsIn()(cmd, args, prefix)
}

// completeEnvsIn offers those that are in one of the states, all when none is
// named.
func (a *app) completeEnvsIn(states ...remotegpuv1.EnvironmentState) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return a.offer(cmd, args, prefix, func(ctx context.Context, c *clients) ([]cobra.Completion, error) {
			response, err := c.environments.ListEnvironments(ctx, &remotegpuv1.ListEnvironmentsRequest{Project: a.project, PageSize: 500, States: states})
			var found []cobra.Completion
			for _, e := range response.GetEnvironments() {
				found = append(found, cobra.CompletionWithDesc(e.GetName(), envState(e)+" "+plain(e.GetSpec().GetImage())))
			}
			return found, err
		})
	}
}

// inTurn offers for each argument what its own function does: nothing for one
// that has none, and nothing after the last.
func inTurn(each ...cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= len(each) || each[len(args)] == nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return each[len(args)](cmd, args, prefix)
	}
}

// anyOf offers what all of them do.
func anyOf(all ...cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		var found []cobra.Completion
		for _, one := range all {
			more, directive := one(cmd, args, prefix)
			if directive == cobra.ShellCompDirectiveError {
				return nil, directive
			}
			found = append(found, more...)
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// completePlaces offers for each side of a copy NAME: of those that names offers,
// and files here. The shell knows those best, and gets to offer them where no
// name fits: they stand beside names only as long as both can be meant.
func completePlaces(names cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		here := len(args) == 0 // whether it may be
		switch {
		case len(args) > 1:
			return nil, cobra.ShellCompDirectiveNoFileComp
		case len(args) == 1 && parsePlace(args[0]).name != "":
			return nil, cobra.ShellCompDirectiveDefault
		case parsePlace(prefix).name != "":
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all, directive := names(cmd, nil, prefix)
		if directive == cobra.ShellCompDirectiveError || here && len(all) == 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		found := make([]cobra.Completion, 0, len(all))
		for _, completion := range all {
			name, what, described := strings.Cut(completion, "\t")
			if name += ":"; described {
				name = cobra.CompletionWithDesc(name, what)
			}
			found = append(found, name)
		}
		if here {
			found = append(found, filesHere(prefix)...)
		}
		return found, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
	}
}

// filesHere are the files of the working directory whose names begin with prefix,
// as ls shows them. What cannot be read is not offered.
func filesHere(prefix string) []cobra.Completion {
	entries, err := os.ReadDir(".")
	if err != nil {
		return nil
	}
	var found []cobra.Completion
	for _, entry := range entries {
		name := entry.Name()
		if strings.HasPrefix(name, ".") || !strings.HasPrefix(name, prefix) || plain(name) != name {
			continue
		}
		if entry.IsDir() {
			name += "/"
		}
		found = append(found, name)
	}
	return found
}

// completeMappings offers host ports that are published.
func (a *app) completeMappings(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.offer(cmd, args, prefix, func(ctx context.Context, c *clients) ([]cobra.Completion, error) {
		response, err := c.ports.ListPortMappings(ctx, &remotegpuv1.ListPortMappingsRequest{Project: a.project, PageSize: 500})
		var found []cobra.Completion
		for _, m := range response.GetPortMappings() {
			name := strconv.Itoa(int(m.GetExternalPort()))
			if m.GetProtocol() == remotegpuv1.Protocol_PROTOCOL_UDP {
				name += "/udp"
			}
			found = append(found, cobra.CompletionWithDesc(name, fmt.Sprintf("to %d, %s", m.GetInternalPort(), state(m.GetServiceType(), "SERVICE_TYPE_"))))
		}
		return found, err
	})
}

// completeImages offers the images of the node.
func (a *app) completeImages(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.offer(cmd, args, prefix, func(ctx context.Context, c *clients) ([]cobra.Completion, error) {
		response, err := c.images.ListImages(ctx, &remotegpuv1.ListImagesRequest{PageSize: 500})
		var found []cobra.Completion
		for _, image := range response.GetImages() {
			name := strings.TrimSuffix(strings.TrimPrefix(image.GetName(), "docker.io/"), ":latest")
			found = append(found, name)
		}
		return found, err
	})
}

// completeOps offers operations that are not done.
func (a *app) completeOps(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.completeOpsIn(remotegpuv1.OperationState_OPERATION_STATE_QUEUED, remotegpuv1.OperationState_OPERATION_STATE_RUNNING)(cmd, args, prefix)
}

// completeOpsIn offers the latest operations in one of the states, of all when
// none is named.
func (a *app) completeOpsIn(states ...remotegpuv1.OperationState) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return a.offerOps(cmd, args, prefix, states)
	}
}

func (a *app) offerOps(cmd *cobra.Command, args []string, prefix string, states []remotegpuv1.OperationState) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.offer(cmd, args, prefix, func(ctx context.Context, c *clients) ([]cobra.Completion, error) {
		response, err := c.operations.ListOperations(ctx, &remotegpuv1.ListOperationsRequest{Project: a.project, PageSize: 50, States: states})
		var found []cobra.Completion
		for _, op := range response.GetOperations() {
			found = append(found, cobra.CompletionWithDesc(op.GetId(), op.GetKind()+" "+plain(op.GetTarget())))
		}
		return found, err
	})
}

func (a *app) offer(cmd *cobra.Command, args []string, prefix string,
	fetch func(context.Context, *clients) ([]cobra.Completion, error),
) ([]cobra.Completion, cobra.ShellCompDirective) {
	c, err := a.dial()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTime)
	defer cancel()
	all, err := fetch(ctx, c)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var found []cobra.Completion
	for _, completion := range all {
		name, _, _ := strings.Cut(completion, "\t")
		taken := false
		for _, arg := range args {
			taken = taken || arg == name
		}
		if !taken && strings.HasPrefix(name, prefix) && plain(name) == name { // others cannot be typed
			found = append(found, completion)
		}
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}
