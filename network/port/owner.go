package port

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// unknownOwner is who has a port when /proc does not tell: a socket that is
// bound and does not listen is in no list there.
const unknownOwner = "another program"

// nameOwners fills in the programs that have the ports of conflicts, as far as
// /proc tells it, in the network namespace of the calling thread. All are
// looked for in one walk over the processes.
func nameOwners(conflicts []Conflict) {
	wanted := make(map[heldPort]int) // index in conflicts
	for i := range conflicts {
		if conflicts[i].Owner == "" {
			conflicts[i].Owner = unknownOwner
			wanted[heldPort{conflicts[i].Mapping.Protocol, conflicts[i].Mapping.External}] = i
		}
	}
	if len(wanted) == 0 {
		return
	}
	inodes := make(map[string]int) // of sockets, to the index in conflicts
	for protocol, files := range map[Protocol][]string{TCP: {"tcp", "tcp6"}, UDP: {"udp", "udp6"}} {
		for _, name := range files {
			socketsOf(filepath.Join("/proc/thread-self/net", name), func(port uint16, inode string) {
				if i, ok := wanted[heldPort{protocol, port}]; ok {
					inodes[inode] = i
				}
			})
		}
	}
	for inode, program := range programsOf(inodes) {
		conflicts[inodes[inode]].Owner = program
	}
}

// socketsOf calls each with the local port and the inode of each socket in a
// table of proc_net(5). One that cannot be read has none.
func socketsOf(path string, each func(port uint16, inode string)) {
	file, err := os.Open(path)
	if err != nil {
		return
	}
	defer file.Close() //nolint:errcheck // it was read only
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 {
			continue
		}
		_, hex, ok := strings.Cut(fields[1], ":")
		port, err := strconv.ParseUint(hex, 16, 16)
		if ok && err == nil && fields[9] != "0" { // 0: no process has it any more
			each(uint16(port), fields[9])
		}
	}
}

// programsOf names the programs that have sockets open.
func programsOf(inodes map[string]int) map[string]string {
	found := make(map[string]string)
	descriptors, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil || len(inodes) == 0 {
		return nil
	}
	for _, path := range descriptors {
		target, err := os.Readlink(path)
		if err != nil {
			continue // it has ended, or closed it
		}
		inode, ok := strings.CutPrefix(strings.TrimSuffix(target, "]"), "socket:[")
		if _, wanted := inodes[inode]; !ok || !wanted || found[inode] != "" {
			continue
		}
		pid := strings.Split(path, "/")[2]
		name, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		if err != nil {
			continue
		}
		found[inode] = strings.TrimSpace(string(name)) + " (process " + pid + ")"
	}
	return found
}
