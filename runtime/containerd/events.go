package containerd

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"

	"github.com/remotegpu/remotegpu/runtime"
)

const (
	topicExit    = "/tasks/exit"
	topicOOM     = "/tasks/oom"
	topicPaused  = "/tasks/paused"
	topicResumed = "/tasks/resumed"
	// topicHere is what a subscriber sends itself: containerd does not say
	// when a subscription has begun, and a caller lists right after.
	topicHere      = "/remotegpu/here"
	subscribeLimit = 10 * time.Second
)

// Events sends exits of first processes, processes killed for memory, and
// containers that were paused or resumed. When
// it returns, nothing that happens from then on is missed.
func (e *Engine) Events(ctx context.Context) (<-chan runtime.Event, <-chan error) {
	out, errs := make(chan runtime.Event), make(chan error, 1)
	streaming, cancel := context.WithCancel(ctx)
	oom := &oomWatch{told: make(map[string]int), due: make(map[string]time.Time)}
	var filters []string
	for _, topic := range []string{topicExit, topicOOM, topicPaused, topicResumed, topicHere} {
		filters = append(filters, fmt.Sprintf("namespace==%q,topic==%q", e.cfg.Namespace, topic))
	}
	in, broken := e.client.EventService().Subscribe(streaming, filters...)
	early, err := e.subscribed(ctx, in, broken, oom)
	if err != nil {
		cancel()
		close(out)
		errs <- err
		return out, errs
	}
	go func() {
		defer cancel()
		err := e.forward(ctx, early, in, broken, out, oom)
		close(out)
		errs <- err
	}()
	return out, errs
}

// subscribed waits until an event of our own comes back, and returns what came
// before it.
func (e *Engine) subscribed(ctx context.Context, in <-chan *events.Envelope, broken <-chan error,
	oom *oomWatch,
) ([]runtime.Event, error) {
	var early []runtime.Event
	token := rand.Text()
	limit := time.NewTimer(subscribeLimit)
	defer limit.Stop()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	publish := func() error {
		err := e.client.EventService().Publish(ctx, topicHere, &eventsapi.NamespaceCreate{Name: token})
		if err != nil {
			return fmt.Errorf("subscribe to events: %w", e.explain(ctx, err))
		}
		return nil
	}
	if err := publish(); err != nil {
		return nil, err
	}
	for {
		select {
		case envelope := <-in:
			if envelope.Topic != topicHere {
				early = e.appendEvent(ctx, early, envelope, oom)
			} else if own, ok := decode[*eventsapi.NamespaceCreate](envelope); ok && own.Name == token {
				return early, nil
			}
		case err := <-broken:
			return nil, fmt.Errorf("subscribe to events: %w", e.ended(ctx, err))
		case <-again.C:
			if err := publish(); err != nil {
				return nil, err
			}
		case <-limit.C:
			return nil, fmt.Errorf("subscribe to events: nothing within %s: %w", subscribeLimit, errdefs.ErrUnavailable)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (e *Engine) forward(ctx context.Context, pending []runtime.Event, in <-chan *events.Envelope, broken <-chan error,
	out chan<- runtime.Event, oom *oomWatch,
) error {
	for {
		for _, event := range pending {
			select {
			case out <- event:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		pending = pending[:0]
		var again <-chan time.Time
		if len(oom.due) > 0 {
			again = time.After(oomPoll)
		}
		select {
		case <-again:
			pending = oom.look(pending, e.oomKills)
		case envelope := <-in:
			pending = e.appendEvent(ctx, pending, envelope, oom)
		case err := <-broken:
			return fmt.Errorf("read events: %w", e.ended(ctx, err))
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// ended is why a stream ended, which is never nil.
func (e *Engine) ended(ctx context.Context, err error) error {
	if err == nil {
		err = fmt.Errorf("the stream ended: %w", errdefs.ErrUnavailable)
	}
	return e.explain(ctx, err)
}

// appendEvent reads one event.
func (e *Engine) appendEvent(ctx context.Context, to []runtime.Event, envelope *events.Envelope, oom *oomWatch) []runtime.Event {
	switch envelope.Topic {
	case topicExit:
		exit, ok := decode[*eventsapi.TaskExit](envelope)
		if !ok {
			e.cfg.Log.WarnContext(ctx, "event cannot be read", "topic", envelope.Topic)
		} else if exit.ID == exit.ContainerID { // else a command's
			ended := exitOf(exit.ExitStatus, exit.ExitedAt)
			kills, _ := e.oomKills(exit.ContainerID) // its cgroup may be gone by now
			ended.OOMKilled = kills > 0 || oom.told[exit.ContainerID] > 0
			to = oom.ended(to, exit.ContainerID, kills)
			to = append(to, runtime.Event{ID: exit.ContainerID, Kind: runtime.EventExit, Exit: ended})
		}
	case topicOOM:
		if told, ok := decode[*eventsapi.TaskOOM](envelope); ok {
			kills, known := e.oomKills(told.ContainerID)
			to = oom.struck(to, told.ContainerID, kills, known)
		}
	case topicPaused:
		if told, ok := decode[*eventsapi.TaskPaused](envelope); ok {
			to = append(to, runtime.Event{ID: told.ContainerID, Kind: runtime.EventPaused})
		}
	case topicResumed:
		if told, ok := decode[*eventsapi.TaskResumed](envelope); ok {
			to = append(to, runtime.Event{ID: told.ContainerID, Kind: runtime.EventResumed})
		}
	}
	return to
}

func decode[T any](envelope *events.Envelope) (event T, ok bool) {
	decoded, err := typeurl.UnmarshalAny(envelope.Event)
	if err != nil {
		return event, false
	}
	event, ok = decoded.(T)
	return event, ok
}
