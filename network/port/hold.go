package port

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Holder keeps host ports, so that no other program can take one while it is
// given out. *Sockets implements it.
type Holder interface {
	// Hold takes a port; one that it has is fine. False: another program has
	// it. An error says that it could not be taken for another reason.
	Hold(protocol Protocol, port uint16) (bool, error)
	// Let lets go of a port; one that it has not is fine.
	Let(protocol Protocol, port uint16)
}

// Sockets holds each port by a socket that is bound to it on all addresses of
// both families, in the network namespace of the thread that calls. Nobody
// listens on it, so who comes by another way than a published port is refused.
// Its methods are safe for concurrent use.
type Sockets struct {
	mu   sync.Mutex
	held map[heldPort]int // file descriptors
}

type heldPort struct {
	protocol Protocol
	port     uint16
}

var _ Holder = (*Sockets)(nil)

// Hold binds a socket to the port. Without SO_REUSEADDR, neither ours nor one
// that another program opens later can share it.
func (s *Sockets) Hold(protocol Protocol, port uint16) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := heldPort{protocol, port}
	if _, held := s.held[key]; held {
		return true, nil
	}
	fd, err := bindAll(protocol, port)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("hold host port %d/%s: %w", port, protocol, err)
	}
	if protocol == UDP {
		// What arrives would fill the socket's buffer, and nobody reads it.
		if err := dropAll(fd); err != nil {
			unix.Close(fd) //nolint:errcheck // nothing was written to it
			return false, fmt.Errorf("hold host port %d/%s: %w", port, protocol, err)
		}
	}
	if s.held == nil {
		s.held = make(map[heldPort]int)
	}
	s.held[key] = fd
	return true, nil
}

// Let closes the port's socket.
func (s *Sockets) Let(protocol Protocol, port uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := heldPort{protocol, port}
	if fd, held := s.held[key]; held {
		unix.Close(fd) //nolint:errcheck // nothing was written to it
		delete(s.held, key)
	}
}

// Count is how many ports are held.
func (s *Sockets) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held)
}

// Close lets go of all ports.
func (s *Sockets) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, fd := range s.held {
		unix.Close(fd) //nolint:errcheck // nothing was written to it
	}
	s.held = nil
}

// dropAll has the kernel drop what arrives at a socket.
func dropAll(fd int) error {
	nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{
		Len: uint16(len(nothing)), Filter: &nothing[0],
	})
}
