package vm_test

import (
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// connect logs in, in place of the connection before, and returns the id of
// the boot that answers.
func (m *Machine) connect() (boot string, err error) {
	if m.client != nil {
		_ = m.client.Close()
		m.client = nil
	}
	conn, err := net.DialTimeout("tcp", m.address, 5*time.Second)
	if err != nil {
		return "", err
	}
	// QEMU itself accepts, long before there is an sshd.
	if err = conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return "", errors.Join(err, conn.Close())
	}
	over, channels, requests, err := ssh.NewClientConn(conn, m.address, m.login)
	if err != nil {
		return "", errors.Join(err, conn.Close())
	}
	if err = conn.SetDeadline(time.Time{}); err != nil {
		return "", errors.Join(err, conn.Close())
	}
	m.client = ssh.NewClient(over, channels, requests)
	boot, code, err := m.try("cat /proc/sys/kernel/random/boot_id")
	if err == nil && code != 0 {
		err = errors.New(boot)
	}
	return boot, err
}

// try runs a shell command in the machine and returns its trimmed output and
// its exit code, or an error when it has not got one.
func (m *Machine) try(command string) (out string, code int, err error) {
	if m.client == nil {
		return "", 0, errors.New("not connected")
	}
	session, err := m.client.NewSession()
	if err != nil {
		return "", 0, err
	}
	// A machine that has been reset does not close its connections.
	client := m.client
	timer := time.AfterFunc(commandLimit, func() { _ = client.Close() })
	defer timer.Stop()
	output, err := session.CombinedOutput(command)
	if exit, ok := errors.AsType[*ssh.ExitError](err); ok {
		code, err = exit.ExitStatus(), nil
	}
	return strings.TrimSpace(string(output)), code, err
}

// Sh runs a shell command in the machine and returns its trimmed output. It
// fails the test when the command fails.
func (m *Machine) Sh(tb testing.TB, command string) string {
	tb.Helper()
	out, code, err := m.try("set -e; " + command)
	if err != nil || code != 0 {
		tb.Fatalf("%s: exit %d, %v\n%s", command, code, err, out)
	}
	return out
}

// quote writes words so that a shell reads them as they are.
func quote(words []string) string {
	quoted := make([]string, len(words))
	for i, word := range words {
		quoted[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
	}
	return strings.Join(quoted, " ")
}

// CLI runs remotegpu in the machine.
func (m *Machine) CLI(tb testing.TB, args ...string) string {
	tb.Helper()
	return m.Sh(tb, "remotegpu "+quote(args)+" 2>&1")
}

// Read runs remotegpu and decodes what it answers.
func (m *Machine) Read(tb testing.TB, into any, args ...string) {
	tb.Helper()
	out := m.Sh(tb, "remotegpu "+quote(append(args, "-o", "json"))+" 2>/dev/null")
	if err := json.Unmarshal([]byte(out), into); err != nil {
		tb.Fatalf("%q: %v\n%s", args, err, out)
	}
}

// eventually polls until holds, and fails the test when it does not in time.
func eventually(tb testing.TB, what string, holds func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(commandLimit); !holds(); time.Sleep(500 * time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatalf("waited in vain for %s", what)
		}
	}
}
