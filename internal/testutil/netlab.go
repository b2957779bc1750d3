package testutil

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// isolatedVariable says that the test binary runs in namespaces of its own.
const isolatedVariable = "REMOTEGPU_TEST_ISOLATED"

// Isolated tells whether the calling top-level test runs in a process with a
// network and a mount namespace of its own. When it does not, Isolated runs
// the test again in such a process, reports how it went and returns false: the
// caller returns then. Every goroutine of the process is in the namespaces,
// and mounts and links die with it.
func Isolated(t *testing.T) bool {
	t.Helper()
	if os.Getenv(isolatedVariable) != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatalf("keep mounts to this process: %v", err)
		}
		Sh(t, "ip link set lo up")
		return true
	}
	arguments := []string{"-test.run=^" + t.Name() + "$", "-test.v", "-test.count=1"}
	if deadline, ok := t.Deadline(); ok {
		arguments = append(arguments, "-test.timeout="+time.Until(deadline).String())
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], arguments...)
	cmd.Env = append(os.Environ(), isolatedVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("in namespaces of its own: %v\n%s", err, out)
	}
	if !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("in namespaces of its own the test did not run:\n%s", out)
	}
	t.Logf("in namespaces of its own:\n%s", out)
	return false
}

// Namespace is a network namespace that tests do things in.
type Namespace struct{ file *os.File }

// NewNamespace makes a network namespace with loopback up, which is gone when
// the test ends and nothing else is in it.
func NewNamespace(tb testing.TB) *Namespace {
	tb.Helper()
	var file *os.File
	onThread(func() {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			tb.Errorf("make network namespace: %v", err)
			return
		}
		file, _ = os.Open("/proc/thread-self/ns/net")
	})
	return namespace(tb, file)
}

// OpenNamespace opens the network namespace at path.
func OpenNamespace(tb testing.TB, path string) *Namespace {
	tb.Helper()
	file, err := os.Open(path)
	if err != nil {
		tb.Fatalf("open network namespace: %v", err)
	}
	return namespace(tb, file)
}

func namespace(tb testing.TB, file *os.File) *Namespace {
	tb.Helper()
	if file == nil {
		tb.Fatal("no network namespace")
	}
	tb.Cleanup(func() { file.Close() })
	n := &Namespace{file}
	n.Sh(tb, "ip link set lo up")
	return n
}

// Path leads to the namespace while the test runs.
func (n *Namespace) Path() string {
	return filepath.Join("/proc", strconv.Itoa(os.Getpid()), "fd", strconv.Itoa(int(n.file.Fd())))
}

// Do calls do on a thread in the namespace. Sockets made by do itself, not by
// goroutines it starts, belong to the namespace.
func (n *Namespace) Do(tb testing.TB, do func()) {
	tb.Helper()
	onThread(func() {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			tb.Errorf("enter network namespace: %v", err)
			return
		}
		do()
	})
}

// Sh runs a shell command in the namespace and returns its trimmed output.
func (n *Namespace) Sh(tb testing.TB, command string) string {
	tb.Helper()
	out, err := exec.CommandContext(tb.Context(), "nsenter", "--net="+n.Path(), "sh", "-ec", command).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s: %v\n%s", command, err, out)
	}
	return strings.TrimSpace(string(out))
}

// Answer listens on a TCP or UDP address in the namespace until the test ends
// and answers everyone who connects, or sends a datagram, with "name address",
// the address being theirs without the port. One of IPv6 is in brackets.
func (n *Namespace) Answer(tb testing.TB, network, address, name string) {
	tb.Helper()
	reply := func(from net.Addr) []byte {
		host, _, _ := net.SplitHostPort(from.String())
		return []byte(name + " " + host)
	}
	var err error
	if network == "udp" {
		var conn net.PacketConn
		n.Do(tb, func() { conn, err = net.ListenPacket("udp"+familyOf(address), address) })
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { conn.Close() })
		go func() {
			buffer := make([]byte, 64)
			for {
				_, from, err := conn.ReadFrom(buffer)
				if err != nil {
					return
				}
				conn.WriteTo(reply(from), from)
			}
		}()
		return
	}
	var listener net.Listener
	n.Do(tb, func() { listener, err = net.Listen("tcp"+familyOf(address), address) })
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Write(reply(conn.RemoteAddr()))
			conn.Close()
		}
	}()
}

// Ask connects from the namespace to what Answer serves, and returns its
// answer, or an error: syscall.ECONNREFUSED, or a timeout when nothing comes
// back within patience.
func (n *Namespace) Ask(tb testing.TB, network, address string, patience time.Duration) (string, error) {
	tb.Helper()
	var conn net.Conn
	var err error
	n.Do(tb, func() { conn, err = net.DialTimeout(network+familyOf(address), address, patience) })
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if network == "udp" {
		if _, err := conn.Write([]byte("?")); err != nil {
			return "", err
		}
	}
	buffer := make([]byte, 64)
	size, err := conn.Read(buffer)
	return string(buffer[:size]), err
}

// familyOf is what net calls the address family of "host:port".
func familyOf(address string) string {
	if strings.HasPrefix(address, "[") {
		return "6"
	}
	return "4"
}

// HoldLock locks a file with flock, as a program that uses xtables does, until
// release is called or the test ends.
func HoldLock(tb testing.TB, path string) (release func()) {
	tb.Helper()
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { file.Close() })
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		tb.Fatal(err)
	}
	return func() { file.Close() }
}

// onThread calls do on a thread that is thrown away afterwards, because do
// changes what belongs to the thread. The main thread cannot be thrown away:
// when the scheduler gives us that one, it is held while another is used.
func onThread(do func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		goruntime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() != unix.Getpid() {
			do()
			return
		}
		onThread(do)
		goruntime.UnlockOSThread()
	}()
	<-done
}
