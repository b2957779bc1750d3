package runtime

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

// A tenant owns the content of its /etc/hosts: whatever it makes of the file,
// the next start reads little and writes it anew.
func TestEtcFilesAreNotTrusted(t *testing.T) {
	dir := t.TempDir()
	etc, address := etcFiles{dir}, netip.MustParseAddr("10.88.0.2")
	if _, err := etc.write("id", "host", address, netip.Addr{}, nil, nil); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "id", "hosts")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<40); err != nil { // sparse: nobody can read it whole
		t.Fatal(err)
	}
	if _, err := etc.write("id", "host", address, netip.Addr{}, nil, nil); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("hosts is %d bytes, %v", len(after), err)
	}
}
