package main

import (
	"github.com/spf13/cobra"

	"github.com/remotegpu/remotegpu/gpu/helper"
	"github.com/remotegpu/remotegpu/gpu/nvidia"
)

// gpuHelper is what the daemon starts to talk to NVIDIA's driver.
func gpuHelper() *cobra.Command {
	return &cobra.Command{
		Use: helper.Subcommand, Short: "Talk to the driver of GPUs for the daemon, which starts this itself",
		Args: cobra.NoArgs, Hidden: true,
		RunE: func(command *cobra.Command, _ []string) error { return helper.Main(command.Context(), nvidia.Open) },
	}
}
