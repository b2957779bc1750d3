package node

import (
	"os"
	"path/filepath"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/containerd"
)

// logWriter is the program beside this one that writes the logs of
// environments.
func (n *Node) logWriter() containerd.LogWriter {
	writer := containerd.LogWriter{MaxSize: n.cfg.Logs.MaxSize, MaxFiles: n.cfg.Logs.MaxFiles}
	if self, err := os.Executable(); err == nil { // it is there but for a kernel without /proc
		writer.Path = filepath.Join(filepath.Dir(self), "remotegpu-logwriter")
	}
	return writer
}

func logWriterMissing(writer containerd.LogWriter) *problem.Problem {
	return problem.New(problem.LogWriterMissing, "%s is not there: logs of environments that start now have no times and are not rotated", writer.Path).
		WithHint("install remotegpu-logwriter beside remotegpud (make build does), then restart the environments")
}
