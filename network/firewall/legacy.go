package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tableInfo is what the kernel tells of a table of the legacy backend without
// listing it (struct ipt_getinfo of linux/netfilter_ipv4/ip_tables.h, and
// ip6t_getinfo, which is the same).
type tableInfo struct {
	name                 [tableName]byte
	validHooks           uint32
	hookEntry, underflow [5]uint32 // bytes from the first rule
	entries, size        uint32    // rules, bytes
}

// tableName is the size of a table's name.
const tableName = 32

// legacyTable is a table in short. Two that are the same have the same rules.
type legacyTable struct {
	info tableInfo
	hash uint64 // of the rules without their counters
}

// Options of raw sockets (linux/netfilter_ipv4/ip_tables.h).
const (
	getInfo    = 64
	getEntries = 65
)

// entriesAt is where rules begin in struct ipt_get_entries: behind the table's
// name, its size and padding. counterSize is the size of a rule's counters.
const (
	entriesAt   = 40
	counterSize = 16
)

// tableAccess is how one address family is asked for its tables, and offsets in
// its struct ipt_entry or ip6t_entry.
type tableAccess struct {
	family, raw, level      int
	nextOffsetAt, counterAt int
}

// tableAccesses are those of tablesV4 and tablesV6.
var tableAccesses = [families]tableAccess{ //nolint:gochecknoglobals // a constant but for its type
	{unix.AF_INET, unix.IPPROTO_RAW, unix.IPPROTO_IP, 90, 96},
	{unix.AF_INET6, unix.IPPROTO_RAW, unix.IPPROTO_IPV6, 142, 152},
}

// growth is by how many entries a script changes the tables that it names, of
// which there are these chains before it. The legacy backend has an entry for
// each rule, and two more for each chain that is not built in.
func growth(script string, there ruleset) map[string]int {
	grown := make(map[string]int)
	table := ""
	for line := range strings.Lines(script) {
		switch what, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " "); {
		case strings.HasPrefix(what, "*"):
			table = what[1:]
			grown[table] = 0
		case strings.HasPrefix(what, ":"):
			if rules, exists := there[table][what[1:]]; exists {
				grown[table] -= len(rules) // it is emptied
			} else {
				grown[table] += 2
			}
		case what == "-A", what == "-I":
			grown[table]++
		case what == "-D":
			grown[table]--
		case what == "-X" && rest != "":
			grown[table] -= 2
		}
	}
	return grown
}

// legacySeed makes hashes comparable within the process.
var legacySeed = maphash.MakeSeed() //nolint:gochecknoglobals // a constant but for its making

// askTables asks for our tables of the legacy backend, in the order of
// tables(). It takes no lock and runs no program; with ten thousand rules it
// takes some milliseconds, without rules, which is what brief means, some
// microseconds. A table that is not there yet is made, without rules.
func askTables(of int, brief bool) (found tablesOf, err error) {
	p := tableAccesses[of]
	fd, err := unix.Socket(p.family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, p.raw)
	if err != nil {
		return found, fmt.Errorf("look at tables: %w", os.NewSyscallError("socket", err))
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	for i, table := range tables() {
		for range 10 { // somebody may change the table between the two questions
			if found[i], err = askTable(fd, p, table, brief); !errors.Is(err, unix.EAGAIN) {
				break
			}
		}
		if err != nil {
			return found, fmt.Errorf("look at table %s: %w", table, err)
		}
	}
	return found, nil
}

func askTable(fd int, p tableAccess, name string, brief bool) (table legacyTable, err error) {
	copy(table.info.name[:], name)
	if err := ask(fd, p.level, getInfo, unsafe.Pointer(&table.info), unsafe.Sizeof(table.info)); err != nil { //nolint:gosec // the kernel's struct
		return table, err
	}
	if brief {
		return table, nil
	}
	buffer := make([]byte, entriesAt+int(table.info.size))
	copy(buffer, name)
	binary.NativeEndian.PutUint32(buffer[tableName:], table.info.size)
	if err := ask(fd, p.level, getEntries, unsafe.Pointer(&buffer[0]), uintptr(len(buffer))); err != nil { //nolint:gosec // the kernel's struct
		return table, err
	}
	table.hash = hashEntries(p, buffer[entriesAt:])
	return table, nil
}

func ask(fd, level int, option uintptr, value unsafe.Pointer, length uintptr) error {
	size := uint32(length)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), option, uintptr(value), uintptr(unsafe.Pointer(&size)), 0) //nolint:gosec // the kernel's struct
	if errno != 0 {
		return os.NewSyscallError("getsockopt", errno)
	}
	return nil
}

// hashEntries hashes rules without their counters, which packets change.
func hashEntries(p tableAccess, b []byte) uint64 {
	entrySize := p.counterAt + counterSize
	var hash maphash.Hash
	hash.SetSeed(legacySeed)
	for len(b) >= entrySize {
		next := int(binary.NativeEndian.Uint16(b[p.nextOffsetAt:]))
		if next < entrySize || next > len(b) {
			break
		}
		hash.Write(b[:p.counterAt])
		hash.Write(b[entrySize:next])
		b = b[next:]
	}
	return hash.Sum64()
}
