package vm_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// The processor is emulated, and what runs beside the test slows it down
// further: these bound a machine that hangs.
const (
	bootLimit    = 20 * time.Minute
	commandLimit = 10 * time.Minute
)

// Machine is a virtual machine that runs as long as its test, on a copy of the
// image. Its only network is QEMU's own, which leads nowhere but from the
// host's loopback to its sshd.
type Machine struct {
	dir     string // of this run
	qemu    *exec.Cmd
	ended   chan struct{} // closed when qemu has ended
	monitor *monitor
	address string // of its sshd, on the host
	login   *ssh.ClientConfig
	client  *ssh.Client // to the boot that is on; nil without one
	boot    string      // kernel's id of it
}

// Boot starts a machine with the payload and waits until it takes commands.
func Boot(tb testing.TB) *Machine {
	tb.Helper()
	// Not tb.TempDir(): the path of a unix socket ends at 107 bytes.
	dir, err := os.MkdirTemp("", "rgvm") //nolint:usetesting // see above
	if err != nil {
		tb.Fatal(err)
	}
	m := &Machine{dir: dir}
	tb.Cleanup(func() { m.remove(tb) })
	m.login = m.writePayload(tb)
	image := filepath.Join(testutil.Repository(), ".tools", "vm", "image")
	overlay := filepath.Join(dir, "root.qcow2")
	run(tb, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", filepath.Join(image, "root.ext4"), overlay)
	m.address = freeAddress(tb)
	_, port, _ := net.SplitHostPort(m.address)
	accel := os.Getenv("REMOTEGPU_VM_ACCEL")
	if accel == "" {
		accel = "tcg,thread=multi"
	}
	m.start(tb, []string{
		"-nodefaults", "-no-user-config", "-machine", "q35", "-accel", accel, "-cpu", "max", "-smp", "2", "-m", "2048",
		"-kernel", filepath.Join(image, "vmlinuz"), "-initrd", filepath.Join(image, "initrd.img"),
		"-append", "root=LABEL=root rw console=ttyS0 mitigations=off",
		// What the guest has flushed survives a reset of the machine, and
		// nothing else does, whatever the host's own disk is told.
		"-drive", "if=virtio,format=qcow2,cache=unsafe,file=" + overlay,
		"-drive", "if=virtio,format=raw,readonly=on,file=" + m.payload(),
		"-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:" + port + "-:22",
		"-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci",
		"-display", "none", "-monitor", "none", "-serial", "file:" + m.console(), "-qmp", "unix:" + dir + "/qmp,server=on,wait=off",
	})
	m.monitor = openMonitor(tb, dir+"/qmp", m.ended)
	m.await(tb)
	return m
}

func (m *Machine) console() string { return filepath.Join(m.dir, "console") }

// start starts QEMU, which dies with the test.
func (m *Machine) start(tb testing.TB, args []string) {
	tb.Helper()
	log, err := os.Create(filepath.Join(m.dir, "qemu.log"))
	if err != nil {
		tb.Fatal(err)
	}
	// Not tb.Context(): it ends before cleanups.
	m.qemu = exec.Command("qemu-system-x86_64", args...)
	m.qemu.Stdout, m.qemu.Stderr = log, log
	m.qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended, started := make(chan struct{}), make(chan error)
	go func() {
		goruntime.LockOSThread() // the kernel's parent death signal is the thread's
		err := m.qemu.Start()
		started <- err
		if err == nil {
			_ = m.qemu.Wait()
		}
		_ = log.Close()
		close(ended)
	}()
	if err := <-started; err != nil {
		m.qemu = nil
		tb.Fatal(err)
	}
	m.ended = ended
}

// await waits until the machine takes commands in another boot than the last.
func (m *Machine) await(tb testing.TB) {
	tb.Helper()
	began := time.Now()
	for deadline := began.Add(bootLimit); ; time.Sleep(time.Second) {
		boot, err := m.connect()
		if err == nil && boot != m.boot {
			m.boot = boot
			tb.Logf("booted in %s", time.Since(began).Round(time.Second))
			return
		}
		select {
		case <-m.ended:
			text, _ := os.ReadFile(filepath.Join(m.dir, "qemu.log"))
			tb.Fatalf("the machine ended: %s", text)
		default:
		}
		if time.Now().After(deadline) {
			tb.Fatalf("the machine takes no commands: %v", err)
		}
	}
}

// Reboot reboots the machine as its administrator would.
func (m *Machine) Reboot(tb testing.TB) {
	tb.Helper()
	// It may be gone before it has answered.
	_, _, _ = m.try("systemctl reboot")
	m.await(tb)
}

// Reset does to the machine what a power cut does: what it has not written to
// its disk is lost.
func (m *Machine) Reset(tb testing.TB) {
	tb.Helper()
	m.monitor.execute(tb, "system_reset")
	m.await(tb)
}

// remove ends the machine and removes what it ran on.
func (m *Machine) remove(tb testing.TB) {
	tb.Helper()
	if tb.Failed() {
		text, _ := os.ReadFile(m.console())
		tb.Logf("end of the console:\n%s", text[max(0, len(text)-8<<10):])
	}
	if m.client != nil {
		_ = m.client.Close()
	}
	if m.monitor != nil {
		m.monitor.close()
	}
	if m.ended != nil {
		// By its pid, which is ours until it has been waited for.
		if err := m.qemu.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			tb.Error(err)
		}
		<-m.ended
	}
	if err := os.RemoveAll(m.dir); err != nil {
		tb.Error(err)
	}
}

// monitor speaks QEMU's machine protocol (QMP).
type monitor struct {
	conn  net.Conn
	lines *bufio.Scanner
}

func openMonitor(tb testing.TB, path string, ended <-chan struct{}) *monitor {
	tb.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		conn, err := net.Dial("unix", path)
		if err == nil {
			m := &monitor{conn: conn, lines: bufio.NewScanner(conn)}
			m.execute(tb, "qmp_capabilities")
			return m
		}
		select {
		case <-ended:
			text, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "qemu.log"))
			tb.Fatalf("the machine did not start: %s", text)
		default:
		}
		if time.Now().After(deadline) {
			tb.Fatal(err)
		}
	}
}

// execute gives an order that takes no arguments and waits for the answer.
func (m *monitor) execute(tb testing.TB, order string) {
	tb.Helper()
	if err := m.conn.SetDeadline(time.Now().Add(commandLimit)); err != nil {
		tb.Fatal(err)
	}
	if _, err := fmt.Fprintf(m.conn, "{\"execute\": %q}\n", order); err != nil {
		tb.Fatal(err)
	}
	for m.lines.Scan() {
		var answer map[string]json.RawMessage // greeting and events come as well
		if err := json.Unmarshal(m.lines.Bytes(), &answer); err != nil {
			tb.Fatalf("%s: %v", m.lines.Text(), err)
		}
		if _, refused := answer["error"]; refused {
			tb.Fatalf("%s: %s", order, m.lines.Text())
		}
		if _, done := answer["return"]; done {
			return
		}
	}
	tb.Fatalf("%s: no answer: %v", order, m.lines.Err())
}

func (m *monitor) close() { _ = m.conn.Close() }

// freeAddress is an address of the host's loopback that nobody listens on.
func freeAddress(tb testing.TB) string {
	tb.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	if err := listener.Close(); err != nil {
		tb.Fatal(err)
	}
	return "127.0.0.1:" + strconv.Itoa(listener.Addr().(*net.TCPAddr).Port) //nolint:forcetypeassert // of a TCP listener
}

// run runs a program on the host.
func run(tb testing.TB, name string, args ...string) {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), name, args...)
	cmd.Dir = testutil.Repository()
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}
