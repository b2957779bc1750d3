package fakenvml

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/remotegpu/remotegpu/gpu/helper"
	"github.com/remotegpu/remotegpu/gpu/nvidia"
)

// Main is the TestMain of a package whose tests use Client: the program of the
// tests is also that of the helper process. m is its *testing.M.
func Main(m interface{ Run() int }) {
	if len(os.Args) > 1 && os.Args[1] == helper.Subcommand {
		if err := helper.Main(context.Background(), nvidia.Open); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Client is the real driver, go-nvml in a helper process, on the stand-in and
// on a sysfs, procfs and cgroup file system below root that are empty unless
// the test fills them.
func (l *Library) Client(tb testing.TB, root string, change ...func(*helper.Config, *nvidia.Config)) *helper.Client {
	tb.Helper()
	settings := nvidia.Config{
		Library: l.Path, Sys: filepath.Join(root, "sys"), Proc: filepath.Join(root, "proc"), Cgroup: filepath.Join(root, "cgroup"),
	}
	var cfg helper.Config
	for _, c := range change {
		c(&cfg, &settings)
	}
	cfg.Settings = settings
	client := helper.New(cfg)
	tb.Cleanup(func() { _ = client.Close() })
	return client
}
