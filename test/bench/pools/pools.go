// Package pools measures what it costs to find host ports: the node's port
// pool, with its database and a socket that holds each port, beside one query
// and one probe per port. No container is made.
package pools

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/store"
	"github.com/remotegpu/remotegpu/test/bench/columns"
	"github.com/remotegpu/remotegpu/test/bench/report"
)

const (
	// first and last are the range; of its ports some hundred are other
	// programs', evenly spread.
	first, last    = 20000, 31999
	foreign        = 100
	perEnvironment = 5
)

// Measure allocates so many ports in so many rounds, in each with both columns
// and all ways, one after the other, beginning with another one each round.
func Measure(ctx context.Context, dir string, rounds, count int, results map[string]*report.Column, say func(string)) error {
	if err := raiseFiles(uint64(count) + 4096); err != nil {
		return err
	}
	release, err := occupy(ctx)
	if err != nil {
		return err
	}
	defer release()
	ways := []struct {
		column string
		row    report.Row
		run    func(ctx context.Context, dir string) (time.Duration, error)
	}{
		{columns.RemoteGPU, report.PortsInFives, func(ctx context.Context, dir string) (time.Duration, error) {
			return pool(ctx, dir, count, perEnvironment)
		}},
		{columns.RemoteGPU, report.PortsSingly, func(ctx context.Context, dir string) (time.Duration, error) { return pool(ctx, dir, count, 1) }},
		{report.Naive, report.PortsSingly, func(ctx context.Context, dir string) (time.Duration, error) { return byQuery(ctx, dir, count) }},
	}
	for round := range rounds {
		for i := range ways {
			way := ways[(round+i)%len(ways)]
			result := results[way.column]
			if result == nil || result.Failure != "" {
				continue
			}
			say(fmt.Sprintf("round %d of %d: %s, %s", round+1, rounds, way.column, way.row))
			own := filepath.Join(dir, fmt.Sprintf("ports-%d-%d", round, i))
			if err := os.MkdirAll(own, 0o700); err != nil {
				return fmt.Errorf("make directory: %w", err)
			}
			took, err := way.run(ctx, own)
			if ctx.Err() != nil {
				return fmt.Errorf("measure: %w", context.Cause(ctx))
			}
			if err != nil {
				result.Failure = err.Error()
				continue
			}
			result.Add(way.row, took)
		}
	}
	return nil
}

// pool is how long the node's pool takes, so many ports at a time; opening it is
// not counted.
func pool(ctx context.Context, dir string, count, atOnce int) (_ time.Duration, err error) {
	db, err := store.Open(ctx, filepath.Join(dir, "node.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var sockets port.Sockets
	defer sockets.Close()
	p, err := port.New(ctx, port.Config{HostID: "bench", Store: db, Holder: &sockets})
	if err != nil {
		return 0, err
	}
	if _, err := p.SetRange(ctx, port.Custom, first, last, port.AnyRevision); err != nil {
		return 0, err
	}
	requests := make([]port.Request, atOnce)
	for i := range requests {
		requests[i] = port.Request{Service: port.Custom, Internal: 80}
	}
	begun := time.Now()
	for i := range count / atOnce {
		owner := port.Owner{EnvID: "env-" + strconv.Itoa(i), Project: "default"}
		if _, err := p.Allocate(ctx, owner, requests, db.InsertPortMappings); err != nil {
			return 0, fmt.Errorf("allocate: %w", err)
		}
	}
	took := time.Since(begun)
	held, _, err := db.PortMappings(ctx, "bench", port.Filter{})
	if err != nil || len(held) != count || sockets.Count() != count {
		return 0, errors.Join(fmt.Errorf("%d ports are stored and %d held, want %d", len(held), sockets.Count(), count), err)
	}
	return took, nil
}

func byQuery(ctx context.Context, dir string, count int) (_ time.Duration, err error) {
	n, err := openNaive(ctx, dir)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	begun := time.Now()
	err = n.allocate(ctx, count)
	return time.Since(begun), err
}

// occupy listens on some ports of the range, as other programs do.
func occupy(ctx context.Context) (release func(), err error) {
	var listeners []net.Listener
	release = func() {
		for _, listener := range listeners {
			_ = listener.Close()
		}
	}
	var config net.ListenConfig
	for i := range foreign {
		address := "127.0.0.1:" + strconv.Itoa(first+i*(last-first+1)/foreign)
		listener, err := config.Listen(ctx, "tcp", address)
		if err != nil {
			release()
			return nil, fmt.Errorf("occupy ports: %w", err)
		}
		listeners = append(listeners, listener)
	}
	return release, nil
}

// raiseFiles lets the process have so many files open.
func raiseFiles(wanted uint64) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read limit of open files: %w", err)
	}
	if limit.Cur >= wanted {
		return nil
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: wanted, Max: max(limit.Max, wanted)}); err != nil {
		return fmt.Errorf("raise limit of open files to %d: %w", wanted, err)
	}
	return nil
}
