package desktop

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/problem"
)

const (
	socketName  = "rfb.sock"
	socketDir   = "rfb"
	dialTimeout = 5 * time.Second
)

// Dialer opens the RFB sockets of environments. A tenant can write the
// directory its socket lies in, so the dialer trusts nothing it finds there:
// no link is followed, only a stream socket is connected to, and whoever
// listens on it must be a process of that very environment.
type Dialer struct {
	// Dir holds a directory per environment, which holds rfb/.
	Dir string
	// InEnvironment tells whether a process belongs to an environment, by its
	// cgroup.
	InEnvironment func(pid int, envID string) (bool, error)
}

// Dial connects to the RFB socket of an environment. Nobody listening is
// DESKTOP_UNAVAILABLE; anything else than a socket of the environment's own is
// DESKTOP_SOCKET_REJECTED.
func (d Dialer) Dial(ctx context.Context, envID string) (net.Conn, error) {
	if err := checkID(envID); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	socket, err := d.open(envID)
	if err != nil {
		return nil, err
	}
	defer unix.Close(socket) //nolint:errcheck // a descriptor that was only looked at
	conn, err := connect(ctx, socket, envID)
	if err != nil {
		return nil, err
	}
	if err := d.checkPeer(conn, envID); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

func checkID(envID string) error {
	if !regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z_-]{0,63}$`).MatchString(envID) {
		return problem.New(problem.FieldInvalid, "environment id %q is not one", envID)
	}
	return nil
}

// open returns an O_PATH descriptor of the socket: whatever the tenant renames
// afterwards, it stays what was looked at.
func (d Dialer) open(envID string) (int, error) {
	dir, err := unix.Open(d.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", d.Dir, err)
	}
	defer unix.Close(dir) //nolint:errcheck // a descriptor that was only looked from
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	var socket int
	for {
		socket, err = unix.Openat2(dir, filepath.Join(envID, socketDir, socketName), &how)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) { // EAGAIN: something was renamed meanwhile
			break
		}
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return -1, unavailable(envID, errors.New("there is no socket yet"))
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOTDIR):
		return -1, rejected(envID, "it is a link or leads out of its directory", err)
	case err != nil:
		return -1, fmt.Errorf("open desktop socket of environment %s: %w", envID, err)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(socket, &stat); err != nil {
		return -1, errors.Join(fmt.Errorf("stat desktop socket of environment %s: %w", envID, err), unix.Close(socket))
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFSOCK {
		what := "it is " + kindOf(stat.Mode) + ", not a socket"
		return -1, errors.Join(rejected(envID, what, nil), unix.Close(socket))
	}
	return socket, nil
}

func kindOf(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return "a symbolic link"
	case unix.S_IFDIR:
		return "a directory"
	case unix.S_IFIFO:
		return "a FIFO"
	case unix.S_IFREG:
		return "a regular file"
	default:
		return "a device"
	}
}

// connect connects to the socket behind the descriptor, without blocking: a
// listener that accepts nothing must not hold us.
func connect(ctx context.Context, socket int, envID string) (*net.UnixConn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "rfb")
	defer file.Close() //nolint:errcheck // FileConn has its own descriptor
	address := &unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(socket)}
	for {
		err = unix.Connect(fd, address)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if !errors.Is(err, unix.EAGAIN) { // EAGAIN: the backlog is full
			break
		}
		select {
		case <-ctx.Done():
			return nil, unavailable(envID, fmt.Errorf("its backlog is full: %w", context.Cause(ctx)))
		case <-time.After(20 * time.Millisecond):
		}
	}
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return nil, unavailable(envID, errors.New("nobody listens on its socket"))
	case errors.Is(err, unix.EPROTOTYPE):
		return nil, rejected(envID, "it is no stream socket", err)
	case err != nil:
		return nil, unavailable(envID, err)
	}
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("take over socket: %w", err)
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("take over socket: it is a %T", conn), conn.Close())
	}
	return unixConn, nil
}

// checkPeer asks the kernel who listens: SO_PEERCRED of a connected client is
// the process that called listen(2).
func (d Dialer) checkPeer(conn *net.UnixConn, envID string) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("ask who listens: %w", err)
	}
	var peer *unix.Ucred
	var peerErr error
	if err := raw.Control(func(fd uintptr) {
		peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || peerErr != nil {
		return fmt.Errorf("ask who listens: %w", errors.Join(err, peerErr))
	}
	if peer.Pid <= 0 {
		return rejected(envID, "who listens on it is unknown", nil)
	}
	inside, err := d.InEnvironment(int(peer.Pid), envID)
	if err != nil {
		return unavailable(envID, fmt.Errorf("look where process %d belongs: %w", peer.Pid, err))
	}
	if !inside {
		return rejected(envID, fmt.Sprintf("process %d listens on it, which is not of this environment", peer.Pid), nil)
	}
	return nil
}

func rejected(envID, what string, cause error) error {
	return problem.New(problem.DesktopSocketBad, "reject desktop socket of environment %s: %s", envID, what).
		WithHint("something inside the environment replaced %s; restart the environment", "/run/remotegpu/rfb/"+socketName).
		WithCause(cause)
}

func unavailable(envID string, cause error) error {
	return problem.New(problem.DesktopUnavailable, "desktop of environment %s does not answer", envID).
		WithHint("it may still be starting; see the environment's log when it stays like this").
		WithCause(cause)
}
