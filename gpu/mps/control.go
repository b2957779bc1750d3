package mps

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/trusted"
)

// trust refuses a program that others than root could change: root runs it.
func (d *Daemons) trust() error {
	if err := trusted.Program(d.cfg.Control); err != nil {
		return problem.New(problem.GPUInjectionFailed, "%s cannot be trusted: %v", d.cfg.Control, err).WithCause(err).
			WithHint("it runs as root: give it and the directories above it to root, and let nobody else write there")
	}
	return nil
}

// ask gives a command to a control daemon and returns what it says.
func (d *Daemons) ask(ctx context.Context, uuid, command string) (string, error) {
	if err := d.trust(); err != nil {
		return "", err
	}
	verb, _, _ := strings.Cut(command, " ")
	changes := !strings.HasPrefix(verb, "get_")
	if changes {
		if err := fault.Before(ctx, "mps "+verb); err != nil {
			return "", err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := d.command(ctx, uuid, d.cfg.Control)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(command+"\n"), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = errors.Join(context.Cause(ctx), err)
		}
		return "", fmt.Errorf("ask %s: %w: %s", filepath.Base(d.cfg.Control), err, strings.TrimSpace(stderr.String()))
	}
	if changes {
		return stdout.String(), fault.After(ctx, "mps "+verb)
	}
	return stdout.String(), nil
}

// launch runs a program that leaves a daemon behind, and waits for the program
// alone. What both say goes into a file: the daemon may keep it open.
func (d *Daemons) launch(ctx context.Context, uuid, program string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, launchTimeout)
	defer cancel()
	said := filepath.Join(d.home(uuid), "log", "start")
	file, err := os.OpenFile(said, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // others write there
	cmd := d.command(ctx, uuid, program, args...)
	cmd.Stdout, cmd.Stderr = file, file
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(said) // as much as there is
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(text[max(0, len(text)-1024):])))
	}
	return nil
}

// command is a program with nothing but the daemon's variables.
func (d *Daemons) command(ctx context.Context, uuid, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "CUDA_VISIBLE_DEVICES=" + uuid,
		"CUDA_MPS_PIPE_DIRECTORY=" + filepath.Join(d.home(uuid), "pipe"), "CUDA_MPS_LOG_DIRECTORY=" + filepath.Join(d.home(uuid), "log"),
	}
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	return cmd
}
