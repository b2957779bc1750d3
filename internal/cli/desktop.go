package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// waitStep is how long one call waits for a desktop; a proxy in between cuts
// calls that take much longer.
const waitStep = 30 * time.Second

func (a *app) desktopCommand() *cobra.Command {
	return group("desktop", "Desktops in the browser", a.desktopURL(), a.desktopGet(), a.desktopWait(), a.desktopScreenshot())
}

func (a *app) desktopURL() *cobra.Command {
	var view bool
	var ttl, wait time.Duration
	cmd := &cobra.Command{
		Use: "url NAME", Short: "Make a browser URL for the desktop, with a short-lived token",
		Long: `url prints a URL to open in a browser. Whoever has it can use the desktop (or,
with --view, see it) until the token ends; the token is in the URL's fragment,
which browsers keep to themselves.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeEnvs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			if wait > 0 {
				if _, err := a.awaitDrawn(cmd.Context(), c, args[0], wait, "wait"); err != nil {
					return err
				}
			}
			request := &remotegpuv1.CreateDesktopSessionRequest{
				Environment: args[0], Project: a.project, Access: remotegpuv1.DesktopAccess_DESKTOP_ACCESS_CONTROL,
			}
			if view {
				request.Access = remotegpuv1.DesktopAccess_DESKTOP_ACCESS_VIEW
			}
			if cmd.Flags().Changed("ttl") {
				request.Ttl = durationpb.New(ttl)
			}
			response, err := c.desktops.CreateDesktopSession(cmd.Context(), request)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(response)
			}
			return a.printf("%s\n", response.GetUrl())
		},
	}
	cmd.Flags().BoolVar(&view, "view", false, "see only; the VNC server itself refuses input")
	cmd.Flags().DurationVar(&ttl, "ttl", 10*time.Minute, "how long the URL opens new connections, at most 24h")
	waitFlag(cmd.Flags(), &wait, 0)
	return cmd
}

func waitFlag(flags *pflag.FlagSet, wait *time.Duration, otherwise time.Duration) {
	flags.DurationVar(wait, "wait", otherwise, "wait at most this long until the desktop has drawn; --wait alone: 5m")
	flags.Lookup("wait").NoOptDefVal = "5m"
}

func (a *app) desktopGet() *cobra.Command {
	return &cobra.Command{
		Use: "get NAME", Short: "Show how to reach the desktop and how far it is",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeEnvs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			desktop, err := c.desktops.GetDesktop(cmd.Context(), &remotegpuv1.GetDesktopRequest{Environment: args[0], Project: a.project})
			if err != nil {
				return err
			}
			return a.showDesktop(desktop)
		},
	}
}

func (a *app) desktopWait() *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "wait NAME", Short: "Wait until the desktop has drawn",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeEnvs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			desktop, err := a.awaitDrawn(cmd.Context(), c, args[0], wait, "timeout")
			if err != nil {
				return err
			}
			return a.showDesktop(desktop)
		},
	}
	cmd.Flags().DurationVar(&wait, "timeout", 5*time.Minute, "wait at most this long (exit code 8)")
	return cmd
}

// awaitDrawn asks until the desktop has drawn, for as long as the flag says.
func (a *app) awaitDrawn(ctx context.Context, c *clients, name string, wait time.Duration, flag string) (*remotegpuv1.GetDesktopResponse, error) {
	deadline := time.Now().Add(wait)
	for {
		left := max(time.Until(deadline), 0)
		asked := time.Now()
		desktop, err := c.desktops.GetDesktop(ctx, &remotegpuv1.GetDesktopRequest{
			Environment: name, Project: a.project, Wait: durationpb.New(min(left, waitStep)),
		})
		switch {
		case err != nil:
			return nil, err
		case desktop.GetReadiness() == remotegpuv1.DesktopReadiness_DESKTOP_READINESS_DRAWN:
			return desktop, nil
		case desktop.GetReadiness() == remotegpuv1.DesktopReadiness_DESKTOP_READINESS_STOPPED:
			return nil, &failure{
				Code: "failed_precondition", Message: "the desktop of " + name + " does not run: " + orElse(desktop.GetDetail(), "the environment is stopped"),
				Hints: []string{"remotegpu env start " + name}, exit: exitConflict,
			}
		case left == 0:
			return nil, undrawn(name, wait, flag, desktop)
		}
		// A server that does not wait is not to be asked in a tight loop.
		if time.Since(asked) < time.Second {
			if err := sleep(ctx, min(time.Second, max(time.Until(deadline), 0))); err != nil {
				return nil, err
			}
		}
	}
}

func undrawn(name string, wait time.Duration, flag string, desktop *remotegpuv1.GetDesktopResponse) error {
	f := &failure{
		Code: "deadline_exceeded", exit: exitFailed,
		Message: fmt.Sprintf("the desktop of %s has not drawn within %s (%s)", name, wait,
			state(desktop.GetReadiness(), "DESKTOP_READINESS_")),
		Hints: []string{"remotegpu desktop screenshot " + name + " shows what there is; --" + flag + "=" + (2 * wait).String() + " waits longer"},
	}
	if desktop.GetDetail() != "" {
		f.Message += ": " + desktop.GetDetail()
	}
	return f
}

func (a *app) showDesktop(d *remotegpuv1.GetDesktopResponse) error {
	if a.output == "json" {
		return a.json(d)
	}
	screen := ""
	if d.GetWidth() > 0 {
		screen = fmt.Sprintf("%dx%d, %d colours", d.GetWidth(), d.GetHeight(), d.GetColours())
	}
	return a.facts([][]string{
		{"Environment", d.GetEnvironment()},
		{"Readiness", state(d.GetReadiness(), "DESKTOP_READINESS_")},
		{"Detail", d.GetDetail()},
		{"Screen", screen},
		{"URL", d.GetUrl()},
		{"noVNC", d.GetNovncUrl()},
		{"VNC", d.GetVncAddress()},
	})
}

func (a *app) desktopScreenshot() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "screenshot NAME", Short: "Save a picture of the desktop (PNG)",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeEnvs,
		RunE: func(cmd *cobra.Command, args []string) error {
			path := orElse(file, fileName(args[0])+".png")
			if path == "-" && onTerminal(a.stdout) {
				return usagef("redirect it, or name a file with -o", "a terminal cannot show a PNG")
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			picture, err := c.desktops.GetScreenshot(cmd.Context(), &remotegpuv1.GetScreenshotRequest{Environment: args[0], Project: a.project})
			if err != nil {
				return err
			}
			if len(picture.GetPng()) == 0 {
				return errors.New("the node answered with an empty picture")
			}
			if path == "-" {
				return a.printf("%s", picture.GetPng())
			}
			// Desktops show secrets: the file is for its owner.
			if err := writeNamed(cmd.Context(), path, savedFile{mode: 0o600, private: true}, func(file io.Writer) error {
				_, err := file.Write(picture.GetPng())
				return err
			}); err != nil {
				return fmt.Errorf("save screenshot: %w", err)
			}
			return a.printf("%s: %dx%d\n", path, picture.GetWidth(), picture.GetHeight())
		},
	}
	// Takes the place of the global flag: a picture is neither table nor json.
	cmd.Flags().StringVarP(&file, "output", "o", "", "file to write; - is standard output (default NAME.png)")
	return cmd
}

// fileName makes a name that is one file here, as "demo@node" is.
func fileName(name string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(`/\:`, r) {
			return '_'
		}
		return r
	}, name)
}
