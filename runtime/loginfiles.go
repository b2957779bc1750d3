package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/remotegpu/remotegpu/internal/atomicfile"
)

// loginFiles keeps what registries ask for: a file for each operation that
// needs one, which only root can read. The database, which people copy and
// look into, never has it; a daemon that starts anew does.
type loginFiles struct{ dir string }

func (f loginFiles) path(opID string) string { return filepath.Join(f.dir, opID) }

// keep writes the login of an operation.
func (f loginFiles) keep(opID string, login Login) error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return fmt.Errorf("keep credentials: %w", err)
	}
	text, err := json.Marshal(login) //nolint:gosec // the file is what keeps it
	if err != nil {
		return fmt.Errorf("keep credentials: %w", err)
	}
	return atomicfile.Write(f.path(opID), text, 0o600)
}

// read returns the login of an operation, fs.ErrNotExist.
func (f loginFiles) read(opID string) (*Login, error) {
	text, err := os.ReadFile(f.path(opID))
	if err != nil {
		return nil, fmt.Errorf("read credentials of operation %s: %w", opID, err)
	}
	var login Login
	if err := json.Unmarshal(text, &login); err != nil {
		// Not the cause: it quotes what it could not read.
		return nil, fmt.Errorf("read credentials of operation %s: the file is damaged: %w", opID, fs.ErrNotExist)
	}
	return &login, nil
}

// forget removes the login of an operation, if it has one.
func (f loginFiles) forget(opID string) error {
	if err := os.Remove(f.path(opID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget credentials: %w", err) // it names the file
	}
	return nil
}

// list returns what is in the directory, each with its age: the logins of
// operations, files that were not written to their end, and what others put
// there.
func (f loginFiles) list() (ages map[string]time.Duration, err error) {
	entries, err := os.ReadDir(f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("list credentials: %w", err)
	}
	ages = make(map[string]time.Duration, len(entries))
	for _, entry := range entries {
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // it is gone since
		} else if err != nil {
			return nil, fmt.Errorf("list credentials: %w", err)
		}
		ages[entry.Name()] = time.Since(info.ModTime())
	}
	return ages, nil
}

// isOperation says whether a file is of an operation.
func isOperation(name string) bool {
	_, err := ulid.ParseStrict(name)
	return err == nil
}

// isHalfWritten says whether a file is one that atomicfile has begun for an
// operation's login.
func isHalfWritten(name string) bool {
	rest, dotted := strings.CutPrefix(name, ".")
	opID, _, begun := strings.Cut(rest, ".")
	return dotted && begun && isOperation(opID)
}
