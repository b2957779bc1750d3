package columns

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// ctr is containerd's own command line, a process per step and no network.
type ctr struct {
	config *Config
	engine *engine
	dir    string
}

func (c *ctr) Name() string { return Ctr }

func (c *ctr) Missing() string {
	return c.config.missing(append(c.config.engine(), [2]string{"ctr", "comes with containerd"})...)
}

func (c *ctr) Versions(ctx context.Context) []string { return c.config.versions(ctx) }

func (c *ctr) Start(ctx context.Context) error {
	var err error
	if c.dir, err = c.config.subdir(Ctr, "run"); err != nil {
		return err
	}
	if c.engine, err = startEngine(ctx, c.config, Ctr); err != nil {
		return err
	}
	return c.engine.load(ctx, c.config, c.config.Name)
}

func (c *ctr) Stop() { c.engine.stop() }

func (c *ctr) Tail() string { return c.engine.daemon.Tail() }

func (c *ctr) Create(ctx context.Context, id string) (*Instance, error) {
	err := c.run(ctx, "run", "--detach", "--seccomp", "--log-uri", "file://"+c.log(id), ImageName, id)
	if err != nil {
		return nil, err
	}
	return &Instance{ID: id}, nil
}

func (c *ctr) Exec(ctx context.Context, instance *Instance) error {
	return c.run(ctx, "task", "exec", "--exec-id", "exec", instance.ID, truePath)
}

func (c *ctr) Remove(ctx context.Context, instance *Instance) error {
	if err := c.run(ctx, "task", "kill", "--signal", "SIGTERM", instance.ID); err != nil {
		return err
	}
	// There is no command that waits for the end of a detached task: deleting
	// it is refused until then.
	deadline := time.Now().Add(stopSeconds * time.Second)
	for {
		err := c.run(ctx, "task", "delete", instance.ID)
		if err == nil {
			break
		}
		if ctx.Err() != nil || time.Now().After(deadline) || !strings.Contains(err.Error(), "must be stopped") {
			return err
		}
	}
	if err := c.run(ctx, "container", "delete", instance.ID); err != nil {
		return err
	}
	if err := os.Remove(c.log(instance.ID)); err != nil {
		return fmt.Errorf("remove log: %w", err)
	}
	return nil
}

func (c *ctr) log(id string) string { return filepath.Join(c.dir, id+".log") }

func (c *ctr) run(ctx context.Context, args ...string) error {
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, c.config.program("ctr"),
		append([]string{"--address", c.engine.address, "--namespace", c.config.Name}, args...)...)
	cmd.Env, cmd.Stdout, cmd.Stderr = c.config.environ(), &said, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("ctr %s: %w: %s", strings.Join(args[:2], " "), err, strings.TrimSpace(said.String()))
	}
	return nil
}
