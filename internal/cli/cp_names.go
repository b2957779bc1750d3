package cli

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"syscall"
)

// errNoName says that a name from there cannot be one here.
var errNoName = errors.New("that cannot be a name here")

// localize makes a path from there, whose elements are names, one of here. On
// Linux and the BSDs a name is any bytes but those of / and NUL, as it is there;
// filepath.Localize wants UTF-8, which macOS and Windows do.
func localize(path string) (string, error) {
	switch goruntime.GOOS {
	case "windows", "darwin", "ios":
		local, err := filepath.Localize(path)
		if err != nil {
			return "", errNoName
		}
		return local, nil
	}
	if strings.ContainsRune(path, 0) {
		return "", errNoName
	}
	return path, nil
}

// nameRefused says that a file system did not want a name: not all take any
// bytes (vfat, ext4 with case folding), nor as many.
func nameRefused(err error) bool {
	const invalidName syscall.Errno = 123 // ERROR_INVALID_NAME of Windows
	return errors.Is(err, syscall.EILSEQ) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENAMETOOLONG) ||
		goruntime.GOOS == "windows" && errors.Is(err, invalidName)
}

// lostNames are files that cannot have their names here. The others are copied
// all the same, and the copy fails at its end.
type lostNames struct {
	count int64
	first string // of the archive
	dir   string // the last directory of them, with a slash at its end
}

// is says whether what was not made for err is one of them: for its own name,
// that of the directory that it is in, or that of the file that it is another
// name of.
func (l *lostNames) is(header *tar.Header, err error) bool {
	switch {
	case err == nil:
		return false
	case errors.Is(err, errNoName), nameRefused(err):
		return true
	case !errors.Is(err, fs.ErrNotExist):
		return false
	}
	return l.dir != "" && strings.HasPrefix(header.Name, l.dir) || l.count > 0 && header.Typeflag == tar.TypeLink
}

func (l *lostNames) add(header *tar.Header) {
	if l.count++; l.count == 1 {
		l.first = header.Name
	}
	// What is in a directory follows it at once.
	if header.Typeflag == tar.TypeDir && (l.dir == "" || !strings.HasPrefix(header.Name, l.dir)) {
		l.dir = strings.TrimSuffix(header.Name, "/") + "/"
	}
}

// err is nil when there are none.
func (l *lostNames) err() error {
	if l.count == 0 {
		return nil
	}
	return &failure{
		Code:    "failed_precondition",
		Message: fmt.Sprintf("%d files and directories were left out, as their names cannot be here; the first is %q", l.count, l.first),
		Hints:   []string{"copy them as a tar stream (remotegpu … cp NAME:PATH - > FILE.tar), to another file system, or rename them there"},
		exit:    exitConflict,
	}
}
