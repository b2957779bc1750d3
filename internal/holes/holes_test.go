package holes_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/holes"
)

func create(t *testing.T) *os.File {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	return file
}

// Files of data, zeros and holes anywhere, read and written in pieces of any
// size, stay what they are, and take no more of the disk.
func TestCopy(t *testing.T) {
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 1))
		from, to := create(t), create(t)
		size := random.Int64N(3 << 20)
		for range random.IntN(6) {
			piece := make([]byte, random.IntN(200_000))
			if random.IntN(3) > 0 {
				for i := range piece {
					piece[i] = byte(i)
				}
			}
			if _, err := from.WriteAt(piece, random.Int64N(size+1)); err != nil {
				t.Fatal(err)
			}
		}
		if err := from.Truncate(size); err != nil { // it ends with a hole, or in the midst
			t.Fatal(err)
		}
		reader, writer := holes.NewReader(from), holes.NewWriter(to)
		for {
			piece := make([]byte, 1+random.IntN(5*holes.Size))
			n, err := reader.Read(piece)
			if _, err := writer.Write(piece[:n]); err != nil {
				t.Fatal(err)
			}
			if err == io.EOF { //nolint:errorlint // the contract of io.Reader
				break
			}
			if err != nil || n == 0 {
				t.Fatalf("seed %d: %d bytes, %v", seed, n, err)
			}
		}
		if err := writer.Finish(); err != nil || writer.Written() != size {
			t.Fatalf("seed %d: %d of %d bytes, %v", seed, writer.Written(), size, err)
		}
		want, wantErr := os.ReadFile(from.Name())
		got, err := os.ReadFile(to.Name())
		if err != nil || wantErr != nil || !bytes.Equal(got, want) {
			t.Fatalf("seed %d: %d bytes are not the %d there were: %v %v", seed, len(got), len(want), err, wantErr)
		}
	}
}

// A file of nothing but a hole needs no disk, to be read and to be written.
func TestHole(t *testing.T) {
	const size = 200 << 20
	from, to := create(t), create(t)
	if err := from.Truncate(size); err != nil {
		t.Fatal(err)
	}
	writer := holes.NewWriter(to)
	if n, err := io.CopyBuffer(writer, struct{ io.Reader }{holes.NewReader(from)}, make([]byte, 1<<20)); err != nil || n != size {
		t.Fatalf("%d bytes: %v", n, err)
	}
	if err := writer.Finish(); err != nil {
		t.Fatal(err)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(to.Fd()), &stat); err != nil || stat.Size != size || stat.Blocks > 64 {
		t.Errorf("%d bytes in %d blocks, %v", stat.Size, stat.Blocks, err)
	}
}

// A file that becomes shorter while it is read ends there, and what is written to
// it behind the reader's place is read.
func TestFileThatChanges(t *testing.T) {
	file := create(t)
	if err := file.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	reader := holes.NewReader(file)
	piece := make([]byte, 4096)
	if n, err := io.ReadFull(reader, piece); err != nil || n != len(piece) {
		t.Fatalf("%d bytes: %v", n, err)
	}
	if _, err := file.WriteAt([]byte("late"), 1<<20); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(reader); err != nil || len(rest) != 1<<20-len(piece)+4 || !bytes.HasSuffix(rest, []byte("late")) {
		t.Errorf("%d bytes: %v", len(rest), err)
	}
	if err := file.Truncate(100); err != nil {
		t.Fatal(err)
	}
	if n, err := reader.Read(piece); n != 0 || err != io.EOF { //nolint:errorlint // the contract of io.Reader
		t.Errorf("behind the end: %d bytes, %v", n, err)
	}
}
