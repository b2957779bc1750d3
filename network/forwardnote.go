package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/remotegpu/remotegpu/internal/atomicfile"
	"github.com/remotegpu/remotegpu/network/firewall"
)

// note is what was noted when forwarding was switched on, before anything was
// changed. The file has a line for each interface: "link NAME" of one that is
// kept apart, with " bridge" behind it of a bridge; "other NAME" of one that was
// there, too; "listens NAME" of one that goes on being configured by routers.
type note struct {
	ours      bool                // it was us who switched it on
	links     []firewall.HostLink // kept apart
	others    []string            // what others forward by these they may go on forwarding
	listening []string
}

// Words that begin the lines of a note, and what follows the name of a bridge.
const (
	linkWord    = "link "
	otherWord   = "other "
	listensWord = "listens "
	bridgeMark  = " bridge"
	// otherMark ended the lines of others in notes of earlier releases, which had
	// no words in front.
	otherMark = " other"
)

// readNote reads the note in a file; it is empty when there is none.
func readNote(file string) (noted note, err error) {
	if file == "" {
		return noted, nil
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return noted, nil
	}
	if err != nil {
		return noted, fmt.Errorf("read whose doing forwarding is: %w", err)
	}
	noted.ours = true
	for line := range strings.Lines(string(text)) {
		noted.add(strings.TrimSuffix(line, "\n"))
	}
	return noted, nil
}

// add reads one line.
func (n *note) add(line string) {
	if name, ok := strings.CutPrefix(line, listensWord); ok {
		n.listening = append(n.listening, name)
		return
	}
	if name, ok := strings.CutPrefix(line, otherWord); ok {
		n.others = append(n.others, name)
		return
	}
	if name, ok := strings.CutSuffix(line, otherMark); ok {
		n.others = append(n.others, name)
		return
	}
	name, bridge := strings.CutSuffix(strings.TrimPrefix(line, linkWord), bridgeMark)
	if firewall.IsLinkName(name) {
		n.links = append(n.links, firewall.HostLink{Name: name, Bridge: bridge})
	}
}

// write keeps the note in a file, whole.
func (n *note) write(file string) error {
	var text strings.Builder
	for _, link := range n.links {
		text.WriteString(linkWord + link.Name)
		if link.Bridge {
			text.WriteString(bridgeMark)
		}
		text.WriteString("\n")
	}
	for _, name := range n.others {
		text.WriteString(otherWord + name + "\n")
	}
	slices.Sort(n.listening)
	n.listening = slices.Compact(n.listening)
	for _, name := range n.listening {
		text.WriteString(listensWord + name + "\n")
	}
	if err := atomicfile.Write(file, []byte(text.String()), 0o600); err != nil {
		return fmt.Errorf("remember whose doing forwarding is: %w", err)
	}
	return nil
}
