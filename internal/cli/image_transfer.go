package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// maxPassword is as many bytes as the API takes.
const maxPassword = 16384

// login are the flags of a command that speaks to a registry.
type login struct {
	username string
	stdin    bool
}

func (l *login) register(flags *pflag.FlagSet) {
	flags.StringVarP(&l.username, "username", "u", "", "user name for the registry; the password is asked for (default: what the node is configured with)")
	flags.BoolVar(&l.stdin, "password-stdin", false, "read the password from standard input")
}

// credentials are nil when there are none. A password is never an argument:
// everybody on the host can read those.
func (a *app) credentials(ctx context.Context, l *login) (*remotegpuv1.RegistryCredentials, error) {
	if l.username == "" {
		if l.stdin {
			return nil, usagef("add --username NAME", "a password needs a user name")
		}
		return nil, nil //nolint:nilnil // none is an answer
	}
	var password string
	if l.stdin {
		text, err := io.ReadAll(io.LimitReader(untilDone(ctx, a.stdin), maxPassword+3))
		if err != nil {
			return nil, fmt.Errorf("read password: %w", err)
		}
		password = strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	} else {
		file, ok := a.stdin.(*os.File)
		if !ok || !term.IsTerminal(int(file.Fd())) {
			return nil, usagef("add --password-stdin and write it there", "the password cannot be asked for: standard input is no terminal")
		}
		_, _ = fmt.Fprint(a.stderr, "Password: ")
		text, err := readPassword(ctx, file)
		_, _ = fmt.Fprintln(a.stderr)
		if err != nil {
			return nil, fmt.Errorf("read password: %w", err)
		}
		password = string(text)
	}
	if password == "" || len(password) > maxPassword {
		return nil, usagef("give 1 to 16384 bytes", "the password has %d bytes", len(password))
	}
	return &remotegpuv1.RegistryCredentials{Username: l.username, Password: password}, nil
}

const loginHelp = `
The password is read from standard input (--password-stdin) or asked for. The
node keeps it until the operation is done, for root's eyes only. Without
--username the node uses the credentials it has been configured with.`

func (a *app) imagePull() *cobra.Command {
	w, l := &waiting{}, &login{}
	cmd := &cobra.Command{
		Use: "pull REFERENCE", Short: "Fetch an image from its registry", Args: cobra.ExactArgs(1),
		Long: "pull fetches an image from its registry and unpacks it.\n" + loginHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			credentials, err := a.credentials(cmd.Context(), l)
			if err != nil {
				return err
			}
			response, err := c.images.PullImage(cmd.Context(), &remotegpuv1.PullImageRequest{
				RequestId: w.id(), Reference: args[0], Project: a.project, Credentials: credentials,
			})
			if err != nil {
				return err
			}
			op, err := a.await(cmd.Context(), c, w, response.GetOperation())
			if err != nil {
				return err
			}
			return a.showMade(w, op)
		},
	}
	w.register(cmd.Flags())
	l.register(cmd.Flags())
	return cmd
}

func (a *app) imagePush() *cobra.Command {
	w, l, destination := &waiting{}, &login{}, ""
	cmd := &cobra.Command{
		Use: "push REFERENCE", Short: "Send an image to a registry", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeImages,
		Long: "push sends an image to the registry that its reference names, or --as another.\n" + loginHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			credentials, err := a.credentials(cmd.Context(), l)
			if err != nil {
				return err
			}
			response, err := c.images.PushImage(cmd.Context(), &remotegpuv1.PushImageRequest{
				RequestId: w.id(), Reference: args[0], Destination: destination, Project: a.project, Credentials: credentials,
			})
			if err != nil {
				return err
			}
			op, err := a.await(cmd.Context(), c, w, response.GetOperation())
			if err != nil {
				return err
			}
			return a.showMade(w, op)
		},
	}
	w.register(cmd.Flags())
	l.register(cmd.Flags())
	cmd.Flags().StringVar(&destination, "as", "", "reference that the registry shall know it by (default: the same)")
	return cmd
}
