package e2e_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// terminal is a command on a pseudo-terminal of its own.
type terminal struct {
	*exec.Cmd
	master *os.File
	text   bytes.Buffer
	lines  chan string
}

// Terminal starts remotegpu on a pseudo-terminal.
func (n *Node) Terminal(tb testing.TB, columns, rows uint16, args ...string) *terminal {
	tb.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		tb.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		tb.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer slave.Close()
	x := &terminal{Cmd: n.command(tb, testutil.Program("remotegpu"), args...), master: master, lines: make(chan string, 1024)}
	x.resize(tb, columns, rows)
	x.Stdin, x.Stdout, x.Stderr = slave, slave, slave
	x.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := x.Start(); err != nil {
		tb.Fatal(err)
	}
	go func() {
		defer close(x.lines)
		buffer := make([]byte, 4096)
		for {
			n, err := master.Read(buffer)
			if n > 0 {
				x.lines <- string(buffer[:n])
			}
			if err != nil {
				return
			}
		}
	}()
	tb.Cleanup(func() { _ = x.Process.Kill(); _ = master.Close() })
	return x
}

func (x *terminal) resize(tb testing.TB, columns, rows uint16) {
	tb.Helper()
	if err := unix.IoctlSetWinsize(int(x.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}); err != nil {
		tb.Fatal(err)
	}
}

func (x *terminal) expect(tb testing.TB, text string) {
	tb.Helper()
	timeout := time.After(60 * time.Second)
	for !strings.Contains(x.text.String(), text) {
		select {
		case more, open := <-x.lines:
			if !open {
				tb.Fatalf("the terminal closed before %q: %q", text, x.text.String())
			}
			x.text.WriteString(more)
		case <-timeout:
			tb.Fatalf("waited in vain for %q: %q", text, x.text.String())
		}
	}
	x.text.Next(strings.Index(x.text.String(), text) + len(text))
}

func (x *terminal) end(tb testing.TB) int {
	tb.Helper()
	ended := make(chan struct{})
	go func() { _ = x.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(60 * time.Second):
		tb.Fatal("remotegpu did not end")
	}
	return x.ProcessState.ExitCode()
}

// processes are the command lines in an environment.
func (n *Node) processes(tb testing.TB, env string) string {
	tb.Helper()
	return n.Must(tb, "env", "exec", "--unary", "--stdin=false", env, "--", "testprog", "ps")
}

func (n *Node) nothingHolds(tb testing.TB, env string) {
	tb.Helper()
	Eventually(tb, "the command and its children to be gone", func() bool { return !strings.Contains(n.processes(tb, env), "hold") })
}

func TestExec(t *testing.T) {
	for _, kind := range either(t) {
		t.Run(string(kind), func(t *testing.T) {
			n := Start(t, kind, "")
			n.Must(t, "env", "create", "box", "--image", n.Image)
			t.Run("terminal", func(t *testing.T) { testExecTerminal(t, n) })
			t.Run("exit codes", func(t *testing.T) { testExecCodes(t, n) })
			t.Run("streams", func(t *testing.T) { testExecStreams(t, n) })
			t.Run("signals", func(t *testing.T) { testExecSignals(t, n) })
			t.Run("input", func(t *testing.T) { testExecInput(t, n) })
			t.Run("vanishing", func(t *testing.T) { testExecVanishing(t, n) })
			t.Run("cost", func(t *testing.T) {
				for _, unary := range []string{"--unary=false", "--unary=true"} {
					begin := time.Now()
					for range 10 {
						n.Must(t, "env", "exec", "--stdin=false", unary, "box", "--", "true")
					}
					t.Logf("exec of true, %s: %v each, the program's start included", unary, time.Since(begin)/10)
				}
			})
		})
	}
}

func testExecTerminal(t *testing.T, n *Node) {
	t.Helper()
	x := n.Terminal(t, 101, 37, "env", "exec", "-it", "box", "--", "testprog", "winsize", "3")
	x.expect(t, "101x37")
	x.resize(t, 90, 33)
	x.expect(t, "90x33")
	_, _ = x.master.WriteString("\x03") // Ctrl-C, of the terminal inside
	if code := x.end(t); code != 130 && code != 2 {
		t.Errorf("Ctrl-C: exit %d", code)
	}
	x = n.Terminal(t, 80, 24, "env", "exec", "-it", "-e", "TERM=vt100", "box", "--", "testprog", "env", ";", "cat", ";", "exit", "7")
	x.expect(t, "TERM=vt100")
	_, _ = x.master.WriteString("typed\n")
	x.expect(t, "typed\r\ntyped")
	before, err := unix.IoctlGetTermios(int(x.master.Fd()), unix.TCGETS)
	if err != nil || before.Lflag&unix.ICANON != 0 {
		t.Errorf("the terminal here is not raw: %v", err)
	}
	_, _ = x.master.WriteString("\x04")
	if code := x.end(t); code != 7 {
		t.Errorf("exit %d, want 7", code)
	}
	if after, err := unix.IoctlGetTermios(int(x.master.Fd()), unix.TCGETS); err == nil && after.Lflag&(unix.ICANON|unix.ECHO) != unix.ICANON|unix.ECHO {
		t.Error("the terminal here was not restored")
	}
	x = n.Terminal(t, 80, 24, "env", "shell", "box")
	x.expect(t, "Error:") // the test image has no shell
	if code := x.end(t); code != 127 {
		t.Errorf("no shell: exit %d, want 127", code)
	}
}

func testExecCodes(t *testing.T, n *Node) {
	t.Helper()
	for _, test := range []struct {
		args []string
		want int
	}{
		{[]string{"box", "--", "testprog", "exit", "42"}, 42},
		{[]string{"box", "--", "/bin/absent"}, 127},
		{[]string{"box", "--", "/bin"}, 126},
		{[]string{"--unary", "box", "--", "/etc/passwd"}, 126},
		{[]string{"-u", "nobody-here", "box", "--", "true"}, 125},
		{[]string{"absent", "--", "true"}, 125},
		{[]string{"--timeout", "1s", "box", "--", "testprog", "sleep"}, 124},
	} {
		if _, errs, code := n.CLI(t, append([]string{"env", "exec", "--stdin=false"}, test.args...)...); code != test.want {
			t.Errorf("%q: exit %d, want %d: %s", test.args, code, test.want, errs)
		}
	}
	n.Must(t, "env", "create", "still", "--image", n.Image)
	n.Must(t, "env", "stop", "still")
	if _, errs, code := n.CLI(t, "env", "exec", "still", "--", "true"); code != 125 || !strings.Contains(errs, "stopped") {
		t.Errorf("a stopped environment: exit %d: %s", code, errs)
	}
}

func testExecStreams(t *testing.T, n *Node) {
	t.Helper()
	exe := testutil.Program("remotegpu")
	if out := n.Sh(t, "dd if=/dev/zero bs=1M count=100 2>/dev/null | "+exe+" env exec -i box -- cat | wc -c"); out != "104857600" {
		t.Errorf("100 MiB through: %s", out)
	}
	if long() {
		begin := time.Now()
		out := n.Sh(t, exe+" env exec --stdin=false box -- testprog flood 1073741824 2>/dev/null | wc -c")
		if out != "1073741824" {
			t.Errorf("1 GiB out: %s", out)
		}
		t.Logf("1 GiB of output, and of errors: %v", time.Since(begin))
	}
	// A reader that stops holds the command up, not the node.
	before := n.resident(t)
	if out := n.Sh(t, exe+" env exec --stdin=false box -- testprog flood 200000000 2>/dev/null | (sleep 3; wc -c)"); out != "200000000" {
		t.Errorf("slow reader: %s", out)
	}
	if grown := n.resident(t) - before; grown > 64<<10 {
		t.Errorf("the node grew by %d KiB", grown)
	}
	// TCP as well as the unix socket.
	token, err := os.ReadFile(n.Dir + "/state/token")
	if err != nil {
		t.Fatal(err)
	}
	cmd := n.command(t, exe, "--addr", "http://127.0.0.1:7480", "env", "exec", "-i", "box", "--", "cat")
	cmd.Env = append(cmd.Env, "REMOTEGPU_TOKEN="+strings.TrimSpace(string(token)))
	cmd.Stdin = strings.NewReader("over TCP")
	if text, err := cmd.CombinedOutput(); err != nil || string(text) != "over TCP" {
		t.Errorf("over TCP: %q %v", text, err)
	}
}

// testExecInput gives commands as much input as one plain call takes, and more.
func testExecInput(t *testing.T, n *Node) {
	t.Helper()
	body := func(size int) string {
		return fmt.Sprintf(`{"environment":"box","argv":["cat"],"stdin":%q}`, base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("x"), size)))
	}
	var result struct {
		Stdout    string `json:"stdout"`
		Truncated bool   `json:"stdoutTruncated"`
	}
	n.call(t, "EnvironmentService/RunCommand", body(1<<20), &result)
	if text, err := base64.StdEncoding.DecodeString(result.Stdout); err != nil || len(text) != 1<<20 || result.Truncated {
		t.Errorf("1 MiB of input: %d bytes of output, cut %v, error %v", len(text), result.Truncated, err)
	}
	if answer := n.curl(t, "EnvironmentService/RunCommand", body(1<<20+1)); answer.Code != "invalid_argument" || !slices.Equal(answer.Fields, []string{"stdin"}) {
		t.Errorf("more than 1 MiB of input: %+v", answer)
	}
}

// resident is the daemon's memory in KiB. nsenter has become the daemon.
func (n *Node) resident(tb testing.TB) int {
	tb.Helper()
	var kib int
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.daemon.Process.Pid))
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			return kib
		}
	}
	tb.Fatal("no VmRSS")
	return 0
}

func testExecVanishing(t *testing.T, n *Node) {
	t.Helper()
	// One plain call ends its command as well. It shows nothing before that.
	plain := n.Terminal(t, 80, 24, "env", "exec", "--unary", "--stdin=false", "box", "--", "testprog", "hold")
	Eventually(t, "the command to run", func() bool { return strings.Contains(n.processes(t, "box"), "hold child") })
	if err := plain.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = plain.Wait()
	n.nothingHolds(t, "box")
	var callers []*terminal // beside one another: what ignores SIGHUP has seconds before it is killed
	for _, args := range [][]string{{"-it"}, {"-t"}, {"-i"}, {"--stdin=false"}} {
		x := n.Terminal(t, 80, 24, append(append([]string{"env", "exec"}, args...), "box", "--", "testprog", "hold")...)
		x.expect(t, "holding")
		callers = append(callers, x)
	}
	for _, x := range callers {
		if err := x.Process.Kill(); err != nil { // nsenter has become remotegpu
			t.Fatal(err)
		}
		_ = x.Wait()
	}
	n.nothingHolds(t, "box")
	// Killed daemon: the next one ends what the first one ran.
	cmd := n.command(t, testutil.Program("remotegpu"), "env", "exec", "-i", "box", "--", "testprog", "hold")
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer input.Close()
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(output, make([]byte, len("holding\n"))); err != nil {
		t.Fatal(err)
	}
	n.Stop(t, syscall.SIGKILL)
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 125 {
		t.Errorf("the node was killed: %v", err)
	}
	n.Run(t)
	n.nothingHolds(t, "box")
}
