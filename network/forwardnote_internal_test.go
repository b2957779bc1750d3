package network

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/network/firewall"
)

// White-box: a note that an earlier release left is read after an upgrade, or
// the host's networks would not be kept apart until it restarts.
func TestNotes(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "note")
	if noted, err := readNote(file); err != nil || noted.ours {
		t.Errorf("without a note: %+v, %v", noted, err)
	}
	links := []firewall.HostLink{{Name: "br0", Bridge: true}, {Name: "eth0"}}
	for text, want := range map[string]note{
		"br0 bridge\neth0\ndocker0 other\n": {ours: true, links: links, others: []string{"docker0"}},
		"link br0 bridge\nlink eth0\nother docker0\nlistens eth0\n": {
			ours: true, links: links, others: []string{"docker0"}, listening: []string{"eth0"},
		},
		"": {ours: true},
		"link eth0 -j ACCEPT\nlink br0 bridge\nlink eth0\n": {ours: true, links: links},
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 { // as it was, and as it is written now
			got, err := readNote(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(note{})); diff != "" {
				t.Errorf("%q (-want +got):\n%s", text, diff)
			}
			if err := got.write(file); err != nil {
				t.Fatal(err)
			}
		}
	}
}
