package projectquota

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mounted is the mount that a directory is in.
type mounted struct{ kind, point string }

// mountOf finds the mount of a directory by its device in mountinfo (proc(5)),
// the one with the longest mount point.
func mountOf(dir string) (mounted, error) {
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return mounted{}, err
	}
	var stat unix.Stat_t
	if err := unix.Stat(resolved, &stat); err != nil {
		return mounted{}, &os.PathError{Op: "stat", Path: resolved, Err: err}
	}
	device := fmt.Sprintf("%d:%d", unix.Major(stat.Dev), unix.Minor(stat.Dev))
	table, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return mounted{}, err
	}
	defer table.Close() //nolint:errcheck // it is only read
	var best, above mounted
	for lines := bufio.NewScanner(table); lines.Scan(); {
		m, dev, ok := parseMount(lines.Text())
		if !ok || m.point != "/" && m.point != resolved && !strings.HasPrefix(resolved, m.point+"/") {
			continue
		}
		if len(m.point) >= len(above.point) {
			above = m
		}
		if dev == device && len(m.point) >= len(best.point) {
			best = m
		}
	}
	if best.point == "" {
		return above, nil // files of btrfs, say, have devices of their own
	}
	return best, nil
}

// parseMount reads a line of mountinfo: the mount point is its fifth field,
// the type comes after a lone hyphen.
func parseMount(line string) (m mounted, device string, ok bool) {
	before, after, found := strings.Cut(line, " - ")
	fields, kinds := strings.Fields(before), strings.Fields(after)
	if !found || len(fields) < 5 || len(kinds) < 1 {
		return mounted{}, "", false
	}
	point := fields[4]
	for _, code := range []string{"040", "011", "012", "134"} { // the kernel's escapes
		n, _ := strconv.ParseUint(code, 8, 8)
		point = strings.ReplaceAll(point, `\`+code, string(rune(n)))
	}
	return mounted{kind: kinds[0], point: point}, fields[2], true
}
