// Command remotegpu is the command line of a node or a coordinator.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/remotegpu/remotegpu/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal ends the wait in good order, the second one the program.
	context.AfterFunc(ctx, stop)
	os.Exit(cli.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv))
}
