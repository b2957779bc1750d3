package rootfs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/rootfs"
)

// Holes of an archive are holes again.
func TestSparse(t *testing.T) {
	tr := newTree(t)
	from, err := os.Create(tr.path("etc/holes"))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	if _, err := from.WriteAt([]byte("middle"), 40<<20); err != nil {
		t.Fatal(err)
	}
	if err := from.Truncate(80 << 20); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "posix"} {
		data, err := exec.CommandContext(t.Context(), "tar", "--sparse", "--format="+format, "-C", tr.path("etc"), "-c", "holes").Output()
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > 1<<20 {
			t.Fatalf("tar wrote %d bytes", len(data))
		}
		done, err := tr.Extract(t.Context(), "to", bytes.NewReader(data), mine())
		if err != nil || done.Bytes != 80<<20 {
			t.Fatalf("%s: %+v %v", format, done, err)
		}
		var stat unix.Stat_t
		if err := unix.Stat(tr.path("to/holes"), &stat); err != nil || stat.Size != 80<<20 || stat.Blocks > 4096 {
			t.Errorf("%s: %d bytes in %d blocks, %v", format, stat.Size, stat.Blocks, err)
		}
		out, err := exec.CommandContext(t.Context(), "cmp", tr.path("etc/holes"), tr.path("to/holes")).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %s", format, out)
		}
		if err := os.Remove(tr.path("to/holes")); err != nil {
			t.Fatal(err)
		}
	}
}

// What Pack writes has zeros for holes, and they are holes again where it is
// taken out.
func TestHolesGoAlong(t *testing.T) {
	tr := newTree(t)
	from, err := os.Create(tr.path("etc/holes"))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	if _, err := from.WriteAt([]byte("middle"), 33<<20+1000); err != nil {
		t.Fatal(err)
	}
	if err := from.Truncate(80<<20 + 7); err != nil {
		t.Fatal(err)
	}
	var data bytes.Buffer
	packed, err := tr.Pack(t.Context(), "/etc/holes", false, &data, func(rootfs.Info) error { return nil })
	if err != nil || packed.Bytes != 80<<20+7 || packed.Changed != 0 || data.Len() < 80<<20 {
		t.Fatalf("%+v, %d bytes: %v", packed, data.Len(), err)
	}
	if done, err := tr.Extract(t.Context(), "to", &data, mine()); err != nil || done.Bytes != packed.Bytes {
		t.Fatalf("%+v %v", done, err)
	}
	var stat unix.Stat_t
	if err := unix.Stat(tr.path("to/holes"), &stat); err != nil || stat.Size != packed.Bytes || stat.Blocks > 4096 {
		t.Errorf("%d bytes in %d blocks, %v", stat.Size, stat.Blocks, err)
	}
	if out, err := exec.CommandContext(t.Context(), "cmp", tr.path("etc/holes"), tr.path("to/holes")).CombinedOutput(); err != nil {
		t.Errorf("%s", out)
	}
}

// Whoever waits for a copy to end does not wait for a terabyte of hole.
func TestEndOfALongHole(t *testing.T) {
	tr := newTree(t)
	if err := os.WriteFile(tr.path("etc/holes"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(tr.path("etc/holes"), 1<<40); err != nil {
		t.Skipf("no file system for it: %v", err)
	}
	data, err := exec.CommandContext(t.Context(), "tar", "--sparse", "-C", tr.path("etc"), "-c", "holes").Output()
	if err != nil {
		t.Fatal(err)
	}
	over := errors.New("over")
	ctx, cancel := context.WithCancelCause(t.Context())
	in := &ending{Reader: bytes.NewReader(data), end: func() { cancel(over) }}
	if _, err := tr.Extract(ctx, "to", in, mine()); !errors.Is(err, over) {
		t.Errorf("it ends with %v", err)
	}
	if _, err := os.Stat(tr.path("to/holes")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was not whole is there: %v", err)
	}
}

// ending calls end with the first read.
type ending struct {
	io.Reader
	end func()
}

// Read implements io.Reader.
func (e *ending) Read(p []byte) (int, error) {
	defer e.end()
	return e.Reader.Read(p)
}

// A few bytes may not keep the node busy for hours.
func TestSparseBomb(t *testing.T) {
	tr := newTree(t)
	record := func(key, value string) string {
		text := fmt.Sprintf(" %s=%s\n", key, value)
		n := len(text) + 2
		if n > 99 {
			t.Fatal("too long for this test")
		}
		return fmt.Sprint(n) + text
	}
	block := func(kind byte, size int) []byte {
		header := make([]byte, 512)
		copy(header, "bomb")
		copy(header[100:], "0000644\x000000000\x000000000\x00")
		copy(header[124:], fmt.Sprintf("%011o\x00%011o\x00        ", size, 0))
		header[156] = kind
		copy(header[257:], "ustar\x0000")
		sum := 0
		for _, b := range header {
			sum += int(b)
		}
		copy(header[148:], fmt.Sprintf("%06o\x00 ", sum))
		return header
	}
	records := record("GNU.sparse.size", "9000000000000000000") + record("GNU.sparse.numblocks", "1") + record("GNU.sparse.map", "0,1")
	var data bytes.Buffer
	data.Write(block('x', len(records)))
	data.WriteString(records + strings.Repeat("\x00", 512-len(records)))
	data.Write(block('0', 1))
	data.WriteString("x" + strings.Repeat("\x00", 511+1024))
	_, err := tr.Extract(t.Context(), "to", &data, mine())
	wantReason(t, "bomb", err, problem.ArchiveInvalid)
	if err != nil && !strings.Contains(err.Error(), "has holes") {
		t.Errorf("another error: %v", err)
	}
}
