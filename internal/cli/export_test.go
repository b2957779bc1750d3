package cli

import (
	"io"
	"io/fs"
	"time"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// ParseSize is parseSize.
func ParseSize(text string) (int64, error) { return parseSize("it", text) }

// NewLines is newLines.
func NewLines(before, now []string) []string { return newLines(before, now) }

// ShowOnTerminal shows operations as on a terminal and takes the bar away.
func ShowOnTerminal(out io.Writer, ops ...*remotegpuv1.Operation) {
	p := &progress{out: out, terminal: true}
	for _, op := range ops {
		p.show(op)
	}
	p.close()
}

// ParsePort is parsePort.
func ParsePort(text string) error { _, err := parsePort(text, time.Now()); return err }

// ParseVolume is parseVolume.
func ParseVolume(text string) error { _, err := parseVolume(text); return err }

// ParseTmpfs is parseTmpfs.
func ParseTmpfs(text string) error { _, err := parseTmpfs(text); return err }

// ParseMount is parseMount.
func ParseMount(text string) error { _, err := parseMount(text); return err }

// Umask is umask.
func Umask() fs.FileMode { return umask() }
