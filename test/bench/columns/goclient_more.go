package columns

import (
	"bufio"
	"context"
	"fmt"
	"os"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/typeurl/v2"
)

// List makes the two calls that tell all there is: records and tasks.
func (g *goClient) List(ctx context.Context, limit int) (int, error) {
	ctx = namespaces.WithNamespace(ctx, g.config.Name)
	records, err := g.client.ContainerService().List(ctx)
	if err != nil {
		return 0, fmt.Errorf("list containers: %w", err)
	}
	running, err := g.client.TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return 0, fmt.Errorf("list tasks: %w", err)
	}
	states := make(map[string]task.Status, len(running.Tasks))
	for _, process := range running.Tasks {
		states[process.ID] = process.Status
	}
	known := 0
	for _, record := range records[:min(limit, len(records))] {
		if _, ok := states[record.ID]; ok {
			known++
		}
	}
	return known, nil
}

// Restart clears the dead task away and makes another.
func (g *goClient) Restart(ctx context.Context, instance *Instance) error {
	ctx = namespaces.WithNamespace(ctx, g.config.Name)
	made := g.container(instance.ID)
	if _, err := made.task.Delete(ctx); err != nil {
		return fmt.Errorf("delete task: %w", err)
	}
	return g.start(ctx, made, newSpans())
}

// Deaths listens to containerd's events.
func (g *goClient) Deaths(ctx context.Context, ready func(), told func(string)) error {
	ctx, cancel := context.WithCancel(namespaces.WithNamespace(ctx, g.config.Name))
	defer cancel()
	// On a connection of its own, as others have it: the stream must not share
	// the fate of calls.
	client, err := containerd.New(g.engine.address, containerd.WithDefaultNamespace(g.config.Name))
	if err != nil {
		return fmt.Errorf("connect to containerd: %w", err)
	}
	defer client.Close()
	messages, failed := client.Subscribe(ctx, `topic=="/tasks/exit"`)
	ready()
	for {
		select {
		case message := <-messages:
			event, err := typeurl.UnmarshalAny(message.Event)
			if err != nil {
				return fmt.Errorf("read event: %w", err)
			}
			if exit, ok := event.(*events.TaskExit); ok && exit.ID == exit.ContainerID {
				told(exit.ContainerID)
			}
		case err := <-failed:
			return err
		}
	}
}

// Logs reads the log file.
func (g *goClient) Logs(_ context.Context, instance *Instance, tail int, each func([]byte)) error {
	file, err := os.Open(g.container(instance.ID).log)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil {
		return fmt.Errorf("look at log: %w", err)
	} else if tail > 0 {
		// Lines are shorter than this.
		if _, err := file.Seek(max(0, info.Size()-int64(tail)*4096), 0); err != nil {
			return fmt.Errorf("seek in log: %w", err)
		}
	}
	var lines [][]byte
	scanner := bufio.NewScanner(file)
	for scanner.Scan() {
		if tail == 0 {
			each(scanner.Bytes())
			continue
		}
		lines = append(lines, append([]byte(nil), scanner.Bytes()...))
	}
	for _, line := range lines[max(0, len(lines)-tail):] {
		each(line)
	}
	return scanner.Err()
}
