package containerd

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/runtime/logfile"
)

// LogWriter is the program that writes the logs of containers. containerd's
// shim starts one for each.
type LogWriter struct {
	// Path is the program, cmd/remotegpu-logwriter. Where it is not there the
	// shim writes the output as it is: without times, streams and rotation.
	Path string
	// MaxSize is the size in bytes at which a log is rotated; 0 means
	// logfile.DefaultMaxSize.
	MaxSize int64
	// MaxFiles is how many files of a log are kept; 0 means
	// logfile.DefaultMaxFiles.
	MaxFiles int
}

// There says whether the program can be started.
func (w *LogWriter) There() bool {
	return w.Path != "" && unix.Access(w.Path, unix.X_OK) == nil
}

// logAddress tells the shim where output goes. Either way it goes on without
// this process.
func (e *Engine) logAddress(name string) string {
	w := &e.cfg.LogWriter
	if !w.There() {
		return (&url.URL{Scheme: "file", Path: name}).String()
	}
	query := url.Values{"path": {name}}
	if w.MaxSize > 0 {
		query.Set("max-size", strconv.FormatInt(w.MaxSize, 10))
	}
	if w.MaxFiles > 0 {
		query.Set("max-files", strconv.Itoa(w.MaxFiles))
	}
	return (&url.URL{Scheme: "binary", Path: w.Path, RawQuery: query.Encode()}).String()
}

// makeLog makes the log file before the shim does, which would let everybody
// read it.
func makeLog(name string) error {
	if name == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return fmt.Errorf("make log directory: %w", err)
	}
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("make log: %w", err)
	}
	return errors.Join(file.Chmod(0o600), file.Close())
}

// removeLogs removes logs with all their rotated files.
func removeLogs(names []string) error {
	for _, name := range names {
		if err := logfile.Remove(name); err != nil {
			return fmt.Errorf("remove log: %w", err)
		}
	}
	return nil
}
