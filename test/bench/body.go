package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/test/bench/columns"
	"github.com/remotegpu/remotegpu/test/bench/measure"
	"github.com/remotegpu/remotegpu/test/bench/names"
	"github.com/remotegpu/remotegpu/test/bench/netbench"
	"github.com/remotegpu/remotegpu/test/bench/pools"
	"github.com/remotegpu/remotegpu/test/bench/report"
)

// body measures the columns of one suite, inside the sandbox.
func body(ctx context.Context, in io.Reader, out, errs io.Writer) error {
	var asked request
	if err := json.NewDecoder(in).Decode(&asked); err != nil {
		return fmt.Errorf("decode request: %w", err)
	}
	suite := report.NewSuite(asked.Suite, asked.Options.Title(asked.Suite))
	begun := time.Now()
	say := func(text string) { fmt.Fprintf(errs, "bench: %s: %s\n", asked.Suite, text) }
	if asked.Suite == report.DNS {
		return answer(out, suite, begun, names.Compare(ctx, names.Config{Dir: asked.Config.Dir, Tools: asked.Config.Tools}, asked.Options.Names, suite, say))
	}
	if measure.Bare(asked.Suite) {
		return bare(ctx, &asked, suite, out, say)
	}
	var started []columns.Column
	byName := map[string]*report.Column{}
	for _, name := range asked.Columns {
		column, err := columns.New(name, &asked.Config)
		if err != nil {
			return err
		}
		measured := report.NewColumn(name)
		suite.Columns = append(suite.Columns, measured)
		byName[name] = measured
		if measured.Missing = column.Missing(); measured.Missing != "" {
			continue
		}
		say("starting " + name)
		defer column.Stop()
		if err := column.Start(ctx); err != nil {
			measured.Failure = fmt.Sprintf("start: %v", err)
			say(fmt.Sprintf("%s failed: %v", name, err))
			continue
		}
		measured.Versions = column.Versions(ctx)
		started = append(started, column)
	}
	if len(started) > 0 {
		if err := measure.Run(ctx, asked.Suite, asked.Options, started, byName, say); err != nil {
			return err
		}
	}
	return answer(out, suite, begun, nil)
}

// answer sends what was measured, unless that failed.
func answer(out io.Writer, suite *report.Suite, begun time.Time, failed error) error {
	if failed != nil {
		return failed
	}
	suite.Seconds = time.Since(begun).Seconds()
	if err := json.NewEncoder(out).Encode(suite); err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	return nil
}

// bare measures a suite whose columns need not be started.
func bare(ctx context.Context, asked *request, suite *report.Suite, out io.Writer, say func(string)) error {
	begun := time.Now()
	byName := map[string]*report.Column{}
	for _, name := range asked.Columns {
		byName[name] = report.NewColumn(name)
		suite.Columns = append(suite.Columns, byName[name])
	}
	options := &asked.Options
	if netbench.Columns(asked.Suite) != nil {
		return answer(out, suite, begun, netbench.Run(ctx, asked.Suite, netbench.Options{
			Mappings: options.Mappings, Environments: options.Environments, Rounds: options.Rounds, Connects: options.Connects,
			Peers: measure.Peers(asked.Columns), Config: asked.Config,
		}, byName, say))
	}
	return answer(out, suite, begun, pools.Measure(ctx, asked.Config.Dir, options.Rounds, options.Ports, byName, say))
}

// kernel is the kernel's release.
func kernel() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err.Error()
	}
	return unix.ByteSliceToString(name.Release[:])
}
