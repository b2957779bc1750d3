// Command remotegpu-logwriter writes the log of one container. containerd's
// shim starts it with the container's output on descriptors 3 and 4 and waits
// until it closes descriptor 5. It ends when both streams have, whatever
// becomes of daemons meanwhile.
package main

import (
	"errors"
	"io"
	"os"
	"os/signal"
	goruntime "runtime"
	"runtime/debug"
	"strconv"
	"syscall"

	"github.com/remotegpu/remotegpu/runtime/logfile"
)

// Descriptors that containerd's shim hands over.
const (
	stdoutFD = 3
	stderrFD = 4
	readyFD  = 5
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		_, _ = io.WriteString(os.Stderr, "remotegpu-logwriter: "+err.Error()+"\n")
		os.Exit(1)
	}
}

func run(args []string) error {
	cfg, err := parse(args)
	if err != nil {
		return err
	}
	// The shim asks it to end once it has closed its side, which is when the
	// streams end anyway; to obey would lose what is still in the pipes.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	// The container waits for this: all else comes after it. What it writes
	// meanwhile is in the pipes.
	ready := os.NewFile(readyFD, "ready")
	_, err = ready.Write([]byte{0})
	if err = errors.Join(err, ready.Close()); err != nil {
		return err
	}
	// There is one for every container, so what counts is its memory.
	goruntime.GOMAXPROCS(1)
	debug.SetGCPercent(20)
	// Without this process the container gets SIGPIPE. The kernel shall take
	// any other one first.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0)
	writer := logfile.NewWriter(cfg)
	_ = writer.Open() // tried again with the first line: a full disk stops no container
	err = writer.Copy(stdoutFD, stderrFD)
	return errors.Join(err, writer.Close())
}

// parse reads names and values, in any order: the shim makes them from the
// query of an address.
func parse(args []string) (logfile.Config, error) {
	var cfg logfile.Config
	for len(args) >= 2 {
		var err error
		switch args[0] {
		case "path":
			cfg.Path = args[1]
		case "max-size":
			cfg.MaxSize, err = strconv.ParseInt(args[1], 10, 64)
		case "max-files":
			cfg.MaxFiles, err = strconv.Atoi(args[1])
		default:
			err = errors.New("unknown argument " + args[0])
		}
		if err != nil {
			return cfg, err
		}
		args = args[2:]
	}
	if cfg.Path == "" || len(args) != 0 {
		return cfg, errors.New("usage: remotegpu-logwriter path FILE [max-size BYTES] [max-files COUNT]; containerd's shim starts it")
	}
	return cfg, nil
}
