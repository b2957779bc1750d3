package rootfs

import (
	"archive/tar"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// xattrRecord begins the names of records that carry extended attributes, as
// GNU tar, bsdtar and star write them.
const xattrRecord = "SCHILY.xattr."

// maxAttributes bounds the attributes of a file, in bytes: a tenant sets them.
const maxAttributes = 256 << 10

// carried says whether an extended attribute is copied: those of users alone.
// Others grant something (security.capability, ACLs) or belong to the file
// system (trusted.overlay.…, and user.overlay.… of unprivileged overlays).
func carried(name string) bool {
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.") && !strings.ContainsRune(name, '=')
}

// attributes are the extended attributes of an open file as records of a
// header; nil where it has none or they cannot be read.
func attributes(file *os.File) map[string]string {
	size, err := unix.Flistxattr(int(file.Fd()), nil)
	if err != nil || size == 0 || size > maxAttributes {
		return nil
	}
	list := make([]byte, size)
	if size, err = unix.Flistxattr(int(file.Fd()), list); err != nil {
		return nil
	}
	var records map[string]string
	total := 0
	for name := range strings.SplitSeq(string(list[:size]), "\x00") {
		if !carried(name) {
			continue
		}
		value := make([]byte, 64<<10) // the most that the kernel stores
		n, err := unix.Fgetxattr(int(file.Fd()), name, value)
		if err != nil {
			continue
		}
		if total += len(name) + n; total > maxAttributes {
			break
		}
		if records == nil {
			records = make(map[string]string)
		}
		records[xattrRecord+name] = string(value[:n])
	}
	return records
}

// setAttributes sets those of a header on a new file. A file system that has
// none goes without.
func setAttributes(file *os.File, header *tar.Header) error {
	for record, value := range header.PAXRecords {
		name, is := strings.CutPrefix(record, xattrRecord)
		if !is || !carried(name) {
			continue
		}
		err := unix.Fsetxattr(int(file.Fd()), name, []byte(value), 0)
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
	}
	return nil
}
