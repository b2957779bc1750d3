// Command bench compares what containers cost with remotegpu, with a plain
// loop on containerd's Go client (the lower bound), and with ctr, podman and
// docker. See README.md.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/remotegpu/remotegpu/test/bench/columns"
	"github.com/remotegpu/remotegpu/test/bench/measure"
	"github.com/remotegpu/remotegpu/test/bench/names"
	"github.com/remotegpu/remotegpu/test/bench/netbench"
	"github.com/remotegpu/remotegpu/test/bench/report"
	"github.com/remotegpu/remotegpu/test/bench/sandbox"
)

func main() {
	// The program calls itself as the first process and as the body of its
	// sandbox.
	if len(os.Args) == 3 {
		switch os.Args[1] {
		case sandbox.InitArg:
			code, err := sandbox.Init(os.Args[2])
			if err != nil {
				fmt.Fprintln(os.Stderr, "bench:", err)
				code = 1
			}
			os.Exit(code)
		case columns.WarmArg:
			exit(columns.KeepWarm(os.Args[2], os.Stdin))
		case netbench.NodeArg:
			exit(netbench.BeNode(context.Background(), os.Args[2]))
		case names.ServeArg:
			exit(names.Serve(context.Background(), os.Args[2]))
		case sandbox.BodyArg:
			exit(body(context.Background(), os.Stdin, os.Stdout, os.Stderr))
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	exit(err)
}

func exit(err error) {
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		os.Exit(0)
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// request is what the body of the sandbox is asked to do.
type request struct {
	Suite   report.SuiteName
	Columns []string
	Config  columns.Config
	Options measure.Options
}

// settings are the flags.
type settings struct {
	request
	suites   []report.SuiteName
	jsonPath string
	parent   string
	require  bool
}

func parse(args []string, errs io.Writer) (*settings, error) {
	s := &settings{}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(errs)
	optionFlags(flags, &s.Options)
	suites := flags.String("suites", join(report.Suites()), "suites to run")
	names := flags.String("columns", strings.Join(columns.Names(), ","), "columns to measure")
	flags.StringVar(&s.jsonPath, "json", "", "`file` for all samples and results")
	flags.IntVar(&s.Config.Containerd, "containerd", 1, "containerd: 1 is the distribution's, 2 the one that make tools built")
	flags.StringVar(&s.Config.Tools, "tools", ".tools/bin", "`directory` of the tools that make tools built")
	flags.StringVar(&s.Config.Remotegpud, "remotegpud", "bin/remotegpud", "`program` of the node daemon")
	flags.StringVar(&s.Config.RemotegpudConfig, "remotegpud-config", "", "`file` with the node's configuration, of which paths, listeners and containerd are replaced; empty: the defaults")
	flags.StringVar(&s.parent, "dir", "/var/tmp", "`directory` on a disk for the run's files")
	flags.BoolVar(&s.require, "require", false, "fail when something that a column needs is not installed")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err := check(&s.Options); err != nil {
		return nil, err
	}
	if s.Config.Containerd != 1 && s.Config.Containerd != 2 {
		return nil, fmt.Errorf("-containerd is 1 or 2, not %d", s.Config.Containerd)
	}
	for name := range strings.SplitSeq(*suites, ",") {
		suite := report.SuiteName(name)
		if !slices.Contains(report.Suites(), suite) {
			return nil, fmt.Errorf("no suite %q, there are %s", name, join(report.Suites()))
		}
		if !slices.Contains(s.suites, suite) {
			s.suites = append(s.suites, suite)
		}
	}
	for name := range strings.SplitSeq(*names, ",") {
		if !slices.Contains(s.Columns, name) {
			s.Columns = append(s.Columns, name)
		}
	}
	for _, path := range []*string{&s.jsonPath, &s.Config.Tools, &s.Config.Remotegpud, &s.Config.RemotegpudConfig, &s.parent} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return nil, fmt.Errorf("resolve %s: %w", *path, err)
		}
		*path = absolute
	}
	return s, nil
}

// optionFlags defines the flags that say how much is measured.
func optionFlags(flags *flag.FlagSet, o *measure.Options) {
	flags.IntVar(&o.Runs, "runs", 15, "life: runs of each column that count")
	flags.IntVar(&o.Warmup, "warmup", 2, "runs before them, and before the calls of list and the ends of events")
	flags.DurationVar(&o.Pause, "pause", 200*time.Millisecond, "pause before each run; before each call of list a quarter of it")
	flags.IntVar(&o.Lists, "lists", 30, "list: calls of each kind")
	flags.IntVar(&o.Bursts, "bursts", 3, "parallel: rounds")
	flags.IntVar(&o.Burst, "burst", 50, "parallel: containers made in a round")
	flags.IntVar(&o.Many, "many", 100, "idle and logs: containers at once, at most 200")
	flags.DurationVar(&o.Idle, "idle", time.Minute, "idle: how long to wait before the use of CPU is watched, with containers three times as long; it is watched eight times as long, with containers five times")
	flags.IntVar(&o.Deaths, "deaths", 100, "events: ends that are awaited")
	flags.IntVar(&o.Floods, "floods", 3, "logs: rounds with one container")
	flags.IntVar(&o.Rounds, "rounds", 5, "ports, firewall, packets: rounds")
	flags.IntVar(&o.Mappings, "mappings", 10000, "firewall, packets: published ports, 200 to 10000")
	flags.IntVar(&o.Environments, "environments", 2000, "packets: environments, at least one for five ports, at most 8000")
	flags.IntVar(&o.Connects, "connects", 4000, "packets: connections of each row in a round; firewall: at least ten times as many while rules are rewritten")
	flags.IntVar(&o.Ports, "ports", 10000, "ports: host ports of each round, at most 10000")
	flags.IntVar(&o.Names.Rounds, "dns-rounds", 5, "dns: rounds that count")
	flags.DurationVar(&o.Names.Time, "dns-time", 4*time.Second, "dns: time of each run")
	flags.IntVar(&o.Flood, "flood", 128, "logs: MiB that one container writes")
	o.Scale = []int{1, 50, 200, 500}
	flags.Func("scale", "list: the `numbers` of containers, of 1, 50, 200 and 500 (default 1,50,200,500)", func(text string) error {
		o.Scale = nil
		for part := range strings.SplitSeq(text, ",") {
			n, err := strconv.Atoi(part)
			if err != nil {
				return err
			}
			if !slices.Contains([]int{1, 50, 200, 500}, n) || (len(o.Scale) > 0 && n <= o.Scale[len(o.Scale)-1]) {
				return errors.New("want some of 1, 50, 200 and 500, ascending")
			}
			o.Scale = append(o.Scale, n)
		}
		return nil
	})
}

func check(o *measure.Options) error {
	for _, n := range []int{o.Runs, o.Lists, o.Bursts, o.Burst, o.Many, o.Deaths, o.Floods, o.Flood, o.Rounds, o.Ports, o.Names.Rounds, o.Connects} {
		if n < 1 {
			return errors.New("what is counted must be at least 1")
		}
	}
	if o.Many > 200 || o.Burst > 200 {
		return errors.New("-many and -burst are at most 200: the lower bound has no more networks")
	}
	if o.Mappings < 200 || o.Mappings > 10000 {
		return errors.New("-mappings is 200 to 10000")
	}
	if o.Environments < o.Mappings/5 || o.Environments > 8000 {
		return errors.New("-environments is at least a fifth of -mappings and at most 8000: an environment has five ports, and the range no more networks")
	}
	if o.Ports > 10000 {
		return errors.New("-ports is at most 10000: the range has no more")
	}
	if o.Warmup < 0 || o.Pause < 0 || o.Idle <= 0 {
		return errors.New("-warmup and -pause are at least 0, -idle is more")
	}
	return nil
}

func join(suites []report.SuiteName) string {
	var text []string
	for _, suite := range suites {
		text = append(text, string(suite))
	}
	return strings.Join(text, ",")
}

// run checks the request, has it measured in a sandbox and reports.
func run(ctx context.Context, args []string, out, errs io.Writer) (err error) {
	s, err := parse(args, errs)
	if err != nil {
		return err
	}
	s.Config.Name = fmt.Sprintf("remotegpu-bench-%d", os.Getpid())
	s.Config.Dir = filepath.Join(s.parent, s.Config.Name)
	if err := missing(s, errs); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("namespaces, mounts and containers need root: run it with sudo")
	}
	if err := os.MkdirAll(s.Config.Dir, 0o700); err != nil {
		return fmt.Errorf("make directory of the run: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(s.Config.Dir)) }()
	if len(started(s)) > 0 {
		if err := buildImage(ctx, &s.Config); err != nil {
			return err
		}
	}
	result, err := measureAll(ctx, s, errs)
	if err != nil {
		return err
	}
	references := []string{columns.GoClient, columns.GoClientShared, columns.Docker}
	result.Judge(report.Names{Of: columns.RemoteGPU, Bound: columns.GoClient, Docker: columns.Docker}, references...)
	if err := result.Write(out, references...); err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	if s.jsonPath != "" {
		encoded, err := json.MarshalIndent(result, "", "  ")
		if err != nil {
			return fmt.Errorf("encode result: %w", err)
		}
		if err := os.WriteFile(s.jsonPath, append(encoded, '\n'), 0o644); err != nil {
			return fmt.Errorf("write result: %w", err)
		}
	}
	return failures(result)
}

// measureAll runs one suite after the other, each in sandboxes of its own.
func measureAll(ctx context.Context, s *settings, errs io.Writer) (*report.Result, error) {
	result := &report.Result{
		StartedAt: time.Now().UTC(), Kernel: kernel(), CPUs: goruntime.NumCPU(), Containerd: s.Config.Containerd,
	}
	for _, name := range s.suites {
		chosen := measure.Columns(name, s.Columns)
		if name == report.DNS {
			chosen = []string{report.OurDNS} // and all that it is compared with
		}
		groups := [][]string{chosen}
		if len(chosen) == 0 || measure.Alone(name) {
			groups = slices.Collect(slices.Chunk(chosen, 1))
		}
		whole := report.NewSuite(name, s.Options.Title(name))
		for i, group := range groups {
			part := s.request
			part.Suite, part.Columns = name, group
			part.Config.Dir = filepath.Join(s.Config.Dir, fmt.Sprintf("%s-%d", name, i))
			measured := &report.Suite{}
			if err := sandbox.Run(ctx, part.Config.Dir, s.Config.Name, part, measured, errs); err != nil {
				return nil, fmt.Errorf("suite %s: %w", name, err)
			}
			whole.Columns = append(whole.Columns, measured.Columns...)
			whole.Seconds += measured.Seconds
		}
		result.Suites = append(result.Suites, whole)
	}
	result.Seconds = time.Since(result.StartedAt).Seconds()
	return result, nil
}

// missing tells what is not installed, and fails when all of it is required.
func missing(s *settings, errs io.Writer) error {
	var lacks []error
	if lack := netbench.Missing(); lack != "" && slices.ContainsFunc(s.suites, func(suite report.SuiteName) bool { return netbench.Columns(suite) != nil }) {
		return errors.New(lack)
	}
	for _, name := range started(s) {
		column, err := columns.New(name, &s.Config)
		if err != nil {
			return err
		}
		if lack := column.Missing(); lack != "" {
			fmt.Fprintf(errs, "bench: column %s cannot be measured: %s\n", name, lack)
			if !columns.IsExperiment(name) {
				lacks = append(lacks, fmt.Errorf("column %s: %s", name, lack))
			}
		}
	}
	if lack := names.Missing(s.Config.Tools); lack != "" && slices.Contains(s.suites, report.DNS) {
		fmt.Fprintf(errs, "bench: names cannot be compared: %s\n", lack)
		lacks = append(lacks, fmt.Errorf("suite dns: %s", lack))
	}
	if s.require {
		return errors.Join(lacks...)
	}
	return nil
}

// started are the columns that make containers in some suite.
func started(s *settings) []string {
	if slices.ContainsFunc(s.suites, func(suite report.SuiteName) bool { return !measure.Bare(suite) }) {
		return s.Columns
	}
	if slices.Contains(s.suites, report.Packets) {
		return measure.Peers(s.Columns)
	}
	return nil
}

// buildImage compiles the image's program and writes the image.
func buildImage(ctx context.Context, config *columns.Config) error {
	program := filepath.Join(config.Dir, "workload")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program,
		"github.com/remotegpu/remotegpu/test/bench/workload")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build program of the image: %w: %s", err, said)
	}
	config.Archive = filepath.Join(config.Dir, "image.tar")
	return columns.WriteArchive(config.Archive, program)
}

// failures is an error when a column that was begun was not finished.
func failures(result *report.Result) error {
	var failed []error
	for _, suite := range result.Suites {
		for _, column := range suite.Columns {
			if column.Failure != "" {
				failed = append(failed, fmt.Errorf("suite %s, column %s: %s", suite.Name, column.Name, column.Failure))
			}
		}
	}
	return errors.Join(failed...)
}
