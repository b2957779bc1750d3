package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	goruntime "runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/test/bench/columns"
	"github.com/remotegpu/remotegpu/test/bench/measure"
	"github.com/remotegpu/remotegpu/test/bench/report"
)

// body measures, inside the sandbox.
func body(ctx context.Context, in io.Reader, out, errs io.Writer) error {
	var asked request
	if err := json.NewDecoder(in).Decode(&asked); err != nil {
		return fmt.Errorf("decode request: %w", err)
	}
	result := &report.Result{
		StartedAt: time.Now().UTC(), Kernel: kernel(), CPUs: goruntime.NumCPU(),
		Containerd: asked.Config.Containerd, Runs: asked.Options.Runs, Warmup: asked.Options.Warmup,
	}
	say := func(text string) { fmt.Fprintln(errs, "bench:", text) }
	var started []columns.Column
	byName := map[string]*report.Column{}
	for _, name := range asked.Columns {
		column, err := columns.New(name, &asked.Config)
		if err != nil {
			return err
		}
		measured := report.NewColumn(name)
		result.Columns = append(result.Columns, measured)
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
	if err := measure.Run(ctx, asked.Options, started, byName, say); err != nil {
		return err
	}
	result.Seconds = time.Since(result.StartedAt).Seconds()
	if err := json.NewEncoder(out).Encode(result); err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	return nil
}

// kernel is the kernel's release.
func kernel() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err.Error()
	}
	return unix.ByteSliceToString(name.Release[:])
}
