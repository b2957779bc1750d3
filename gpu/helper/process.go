package helper

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	goruntime "runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// environment is all that the helper sees of the daemon's: nothing of it may
// choose what libraries it loads.
var environment = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}

// killWait is how long a process that was killed may take to end.
const killWait = 2 * time.Second

// process is a helper that runs.
type process struct {
	in      *os.File
	answers chan answer   // closed when it has ended
	ended   chan struct{} // closed when it has been waited for
	err     error         // how it ended; after ended
	left    chan struct{} // closed when nobody wants answers any more
	said    words         // on its standard error
	cmd     *exec.Cmd
	quit    sync.Once
	fresh   bool // it has answered nothing yet
}

// start runs a helper and tells it its settings.
func start(ctx context.Context, cfg Config) (*process, error) {
	settings, err := json.Marshal(cfg.Settings)
	if err != nil {
		return nil, fmt.Errorf("write settings: %w", err)
	}
	inRead, inWrite, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make pipe: %w", err), inRead.Close(), inWrite.Close())
	}
	p := &process{in: inWrite, answers: make(chan answer), ended: make(chan struct{}), left: make(chan struct{}), fresh: true}
	p.cmd = exec.CommandContext(context.WithoutCancel(ctx), cfg.Program, cfg.Args...)
	p.cmd.Env, p.cmd.Dir = environment, "/"
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = inRead, outWrite, &p.said
	p.cmd.WaitDelay = time.Second // something that it started may hold its standard error
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go p.run(started)
	err = <-started
	_, _ = inRead.Close(), outWrite.Close() // the process has them
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the GPU helper: %w", err), inWrite.Close(), outRead.Close())
	}
	go p.read(outRead)
	if err := p.write(append(settings, '\n')); err != nil {
		p.kill()
		return nil, p.failure()
	}
	return p, nil
}

// run starts the process and waits for it, on one thread: the kernel sends the
// signal of Pdeathsig when the thread that started it ends, which the threads of
// other parts of the daemon do.
func (p *process) run(started chan<- error) {
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	p.err = p.cmd.Wait()
	close(p.ended)
}

// read passes answers on until the process has closed its standard output. A
// line that is none ends the process: nothing that follows can be trusted.
func (p *process) read(out *os.File) {
	defer close(p.answers)
	defer func() { _ = out.Close() }() // it was read to its end
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var a answer
		if err := json.Unmarshal(line, &a); err != nil {
			_, _ = fmt.Fprintf(&p.said, "it said what is no answer: %.200q\n", line) // to memory
			p.kill()
			return
		}
		select {
		case p.answers <- a: // also when it has ended since
		case <-p.left:
			return
		}
	}
}

// write gives up on a process that does not read.
func (p *process) write(line []byte) error {
	if err := p.in.SetWriteDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	_, err := p.in.Write(line)
	return err
}

// ask writes a question.
func (p *process) ask(q question) error {
	line, err := json.Marshal(q)
	if err != nil {
		return fmt.Errorf("write question: %w", err)
	}
	return p.write(append(line, '\n'))
}

// running says whether the process has not ended.
func (p *process) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// kill ends the process with all that it started, and waits for it. It says no
// of one that hangs in the kernel after a moment; that one ends when it can.
func (p *process) kill() (ended bool) {
	p.quit.Do(func() {
		close(p.left)
		if p.running() {
			_ = unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL) // it may just have ended
			_ = p.cmd.Process.Kill()
		}
		_ = p.in.Close() // a second close is an error
	})
	select {
	case <-p.ended:
		return true
	case <-time.After(killWait):
		return false
	}
}

// failure is how the process ended, with the last of what it said.
func (p *process) failure() error {
	select {
	case <-p.ended:
	case <-time.After(killWait):
		return errors.New("the GPU helper does not end")
	}
	state := "exit status 0"
	if p.err != nil {
		state = p.err.Error()
	}
	if said := p.said.last(); said != "" {
		return fmt.Errorf("the GPU helper ended (%s): %s", state, said)
	}
	return fmt.Errorf("the GPU helper ended (%s)", state)
}
