package port

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Probe says whether a host port is free of other programs. An error says
// that it cannot be told.
type Probe func(Protocol, uint16) (free bool, err error)

// BindProbe asks the kernel by binding the port on all addresses of both
// families at once, in the network namespace of the calling thread, and
// letting go of it. Without SO_REUSEADDR that also fails on a port that is
// bound but not listened on, and on the local port of an outgoing connection.
// It does not see DNAT rules of other tools: see Pool.SetForeign.
func BindProbe(protocol Protocol, port uint16) (bool, error) {
	fd, err := bindAll(protocol, port)
	switch {
	case err == nil:
		unix.Close(fd) //nolint:errcheck // nothing was written to it
		return true, nil
	case errors.Is(err, unix.EADDRINUSE):
		return false, nil
	default:
		return false, fmt.Errorf("probe host port %d/%s: %w", port, protocol, err)
	}
}

// bindAll makes a socket that is bound to the port on all addresses.
func bindAll(protocol Protocol, port uint16) (fd int, err error) {
	fd, err = bind(unix.AF_INET6, protocol, port)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
		fd, err = bind(unix.AF_INET, protocol, port) // no IPv6 on this host
	}
	return fd, err
}

func bind(family int, protocol Protocol, port uint16) (fd int, err error) {
	kind := unix.SOCK_STREAM
	if protocol == UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd) //nolint:errcheck // nothing was written to it
		}
	}()
	if family == unix.AF_INET {
		return fd, os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)}))
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
		return fd, os.NewSyscallError("setsockopt", err)
	}
	return fd, os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrInet6{Port: int(port)}))
}
