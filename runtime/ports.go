package runtime

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/remotegpu/remotegpu/internal/fault"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/network/port"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

// Each mapping that an environment holds comes of one request in Spec.Ports: a
// mapping that is added, changed or removed by itself changes that list too. So
// an update of Spec.Ports by a list that was read before is refused or keeps
// it, and a start, a snapshot or a clone knows of it.

// portLimit is how many ports an environment may ask for, as the contract has
// it.
const portLimit = 64

// PortCreateRequest asks for one more mapping of an environment that exists.
type PortCreateRequest struct {
	RequestID   string
	Project     string
	Environment string // id or name
	Etag        string // of the environment; "": whatever it is
	Port        port.Request
	ExpiresIn   time.Duration // in place of Port.ExpiresAt; 0: none
}

// Fields of a mapping that can be changed, as in the API.
const (
	PortDescription = "description"
	PortSources     = "allowed_sources"
	PortExpiresAt   = "expires_at"
	PortExpiresIn   = "expires_in"
)

// PortUpdateRequest asks for a change of a mapping.
type PortUpdateRequest struct {
	RequestID   string
	ID          string
	Etag        string // of the mapping; "": whatever it is
	Fields      []string
	Description string
	Sources     []string
	ExpiresAt   time.Time
	ExpiresIn   time.Duration
}

// PortDeleteRequest asks for the end of a mapping.
type PortDeleteRequest struct {
	RequestID string
	ID        string
	Etag      string // of the mapping; "": whatever it is
}

// portArgs are what an operation on a mapping keeps to do its work.
type portArgs struct {
	Mapping string `json:"mapping"` // id; of a create the one to be
	// Request is what a create asks for, and of an update what the mapping is to
	// be like; only the terms count then.
	Request port.Request `json:"request"`
	Host    uint16       `json:"host_port,omitempty"` // to be shown
}

// Port returns a mapping, released ones too: PORT_MAPPING_NOT_FOUND.
func (m *Manager) Port(ctx context.Context, id string) (port.Mapping, error) {
	return m.cfg.Ports.Mapping(ctx, id)
}

// CreatePort gives an environment one more mapping and returns the id that it
// will have, with the operation that does it.
func (m *Manager) CreatePort(ctx context.Context, req PortCreateRequest) (id string, op *operation.Operation, err error) {
	if req.Project == "" {
		req.Project = DefaultProject
	}
	hash := hashOf(KindPortCreate, req)
	if op, err := m.known(ctx, req.Project, req.RequestID, hash); op != nil || err != nil {
		return answerPort(op, err)
	}
	if err := m.room(); err != nil {
		return "", nil, err
	}
	request, err := expiring(req.Port, req.ExpiresIn)
	if err != nil {
		return "", nil, err
	}
	if err := m.cfg.Ports.Check([]port.Request{request}, fieldPorts); err != nil {
		return "", nil, ofOnePort(err)
	}
	env, err := m.Get(ctx, req.Project, req.Environment)
	if err != nil {
		return "", nil, err
	}
	args := portArgs{Mapping: ulid.Make().String(), Request: request, Host: request.External}
	return m.portOperation(ctx, KindPortCreate, env.ID, env.Project, req.RequestID, hash, args, func(env *Environment) error {
		switch {
		case req.Etag != "" && req.Etag != Etag(env.Revision):
			return etagMismatch(env.Name)
		case len(env.Spec.Ports) >= portLimit:
			return problem.New(problem.FieldInvalid, "environment %q has %d ports already", env.Name, portLimit).WithField("environment").
				WithHint("remove some first: remotegpu port ls --env %s", env.Name)
		}
		return nil
	})
}

// UpdatePort changes who may come by a mapping, until when, or what it is said
// to be for. The operation is nil when nothing differs.
func (m *Manager) UpdatePort(ctx context.Context, req PortUpdateRequest) (id string, op *operation.Operation, err error) {
	mapping, err := m.cfg.Ports.Mapping(ctx, req.ID)
	if err != nil {
		return "", nil, err
	}
	hash := hashOf(KindPortUpdate, req)
	if op, err := m.known(ctx, mapping.Project, req.RequestID, hash); op != nil || err != nil {
		return answerPort(op, err)
	}
	if mapping.Status == port.Released {
		return "", nil, portReleased(mapping)
	}
	request, err := m.newTerms(mapping, &req)
	if err != nil {
		return "", nil, err
	}
	args := portArgs{Mapping: mapping.ID, Request: request, Host: mapping.External}
	return m.portOperation(ctx, KindPortUpdate, mapping.EnvID, mapping.Project, req.RequestID, hash, args, func(env *Environment) error {
		held, err := heldPort(env, mapping.ID, req.Etag)
		if err != nil {
			return err
		}
		if port.SameTerms(*held, request) {
			return errNothingToDo
		}
		return nil
	})
}

// newTerms are the terms that a mapping has after an update.
func (m *Manager) newTerms(mapping port.Mapping, req *PortUpdateRequest) (port.Request, error) {
	request := port.Request{
		Service: mapping.Service, Internal: mapping.Internal, Protocol: mapping.Protocol,
		Description: mapping.Description, ExpiresAt: mapping.ExpiresAt,
	}
	for _, source := range mapping.Sources {
		request.Sources = append(request.Sources, source.String())
	}
	if len(req.Fields) == 0 {
		return request, invalid("update_mask", "name some of "+strings.Join([]string{PortDescription, PortSources, PortExpiresAt}, ", "), "nothing is to be changed")
	}
	for _, field := range req.Fields {
		var err error
		switch field {
		case PortDescription:
			request.Description = req.Description
		case PortSources:
			request.Sources = req.Sources
		case PortExpiresAt:
			request.ExpiresAt = req.ExpiresAt
		case PortExpiresIn:
			request.ExpiresAt = time.Time{}
			request, err = expiring(request, req.ExpiresIn)
		default:
			err = invalid("update_mask", "use some of "+strings.Join([]string{PortDescription, PortSources, PortExpiresAt, PortExpiresIn}, ", "),
				"field %q of a mapping cannot be changed", field)
		}
		if err != nil {
			return request, err
		}
	}
	return request, ofOnePort(m.cfg.Ports.Check([]port.Request{request}, fieldPorts))
}

// DeletePort withdraws a mapping and gives its host port back. The operation is
// nil when that has been done.
func (m *Manager) DeletePort(ctx context.Context, req PortDeleteRequest) (id string, op *operation.Operation, err error) {
	mapping, err := m.cfg.Ports.Mapping(ctx, req.ID)
	if err != nil {
		return "", nil, err
	}
	hash := hashOf(KindPortDelete, req)
	if op, err := m.known(ctx, mapping.Project, req.RequestID, hash); op != nil || err != nil {
		return answerPort(op, err)
	}
	if mapping.Status == port.Released {
		return mapping.ID, nil, nil
	}
	args := portArgs{Mapping: mapping.ID, Host: mapping.External}
	return m.portOperation(ctx, KindPortDelete, mapping.EnvID, mapping.Project, req.RequestID, hash, args, func(env *Environment) error {
		_, err := heldPort(env, mapping.ID, req.Etag)
		return err
	})
}

// portPatience is how long a request on a mapping waits for others on the ports
// of the same environment: each takes some milliseconds.
const portPatience = 10 * time.Second

// portOperation writes down an operation on a mapping of an environment, when
// check lets it, and has it done. Others on mappings of the environment are
// waited for: they are quick, and who asks for two ports at once means both.
func (m *Manager) portOperation(ctx context.Context, kind, envID, project, requestID, hash string, args portArgs,
	check func(*Environment) error,
) (id string, op *operation.Operation, err error) {
	patience, cancel := context.WithTimeout(ctx, portPatience)
	defer cancel()
	for waited := ""; ; {
		var before string // the operation that works on the environment
		id, op, err = m.startOnPort(ctx, kind, envID, project, requestID, hash, args, func(env *Environment) error {
			before = env.Operation
			if err := checkFree(env, ""); err != nil {
				return err
			}
			if !env.Held || env.StartedAt.IsZero() {
				return neverMade(env)
			}
			return check(env)
		})
		if err == nil || before == "" || before == waited {
			return id, op, err
		}
		blocking, getErr := m.cfg.Queue.Get(ctx, before)
		if getErr != nil || !isOnPort(blocking.Kind) {
			return id, op, err
		}
		if _, waitErr := m.cfg.Queue.Wait(patience, before); waitErr != nil {
			return id, op, err // it is busy still
		}
		waited = before
	}
}

// isOnPort tells whether operations of a kind work on single mappings.
func isOnPort(kind string) bool {
	return kind == KindPortCreate || kind == KindPortUpdate || kind == KindPortDelete
}

// startOnPort is portOperation without waiting.
func (m *Manager) startOnPort(ctx context.Context, kind, envID, project, requestID, hash string, args portArgs,
	check func(*Environment) error,
) (id string, op *operation.Operation, err error) {
	op = m.newOperation(kind, project, envID, requestID, hash, args)
	env, existing, err := m.cfg.Store.UpdateEnvironment(fault.Within(ctx, "request ", kind), envID, op, func(env *Environment) error {
		if err := check(env); err != nil {
			return err
		}
		env.Operation = op.ID
		return nil
	})
	switch {
	case errors.Is(err, errNothingToDo):
		return args.Mapping, nil, nil
	case err != nil:
		m.cfg.Queue.Kick(op.ID) // the answer was lost, perhaps not the row
		return "", nil, err
	case existing != nil:
		return answerPort(existing, checkHash(existing, hash))
	}
	m.fill(env)
	m.follow(env)
	m.changes.publish(env)
	m.cfg.Queue.Kick(op.ID)
	return args.Mapping, op, nil
}

// answerPort answers a repeated request.
func answerPort(op *operation.Operation, err error) (string, *operation.Operation, error) {
	if err != nil {
		return "", nil, err
	}
	return read[portArgs](op).Mapping, op, nil
}

// expiring is a request that is over after some time. Times are kept to the
// millisecond.
func expiring(request port.Request, after time.Duration) (port.Request, error) {
	if after != 0 {
		if !request.ExpiresAt.IsZero() {
			return request, invalid(PortExpiresIn, "set one of them", "%s and %s are both set", PortExpiresAt, PortExpiresIn)
		}
		request.ExpiresAt = time.Now().Add(after)
	}
	request.ExpiresAt = request.ExpiresAt.UTC().Truncate(time.Millisecond)
	return request, nil
}

// heldPort is a mapping that an environment holds.
func heldPort(env *Environment, id, etag string) (*port.Mapping, error) {
	at := slices.IndexFunc(env.Ports, func(m port.Mapping) bool { return m.ID == id })
	if at < 0 {
		return nil, problem.New(problem.PortNotFound, "environment %q does not hold port mapping %s any more", env.Name, id).WithField("id").
			WithHint("list those there are with: remotegpu port ls")
	}
	if etag != "" && etag != Etag(env.Ports[at].Revision) {
		return nil, problem.New(problem.EtagMismatch, "port mapping %s has changed since it was read", id).WithField("etag").
			WithHint("read it again and decide anew")
	}
	return &env.Ports[at], nil
}

func portReleased(m port.Mapping) error {
	return problem.New(problem.PortNotFound, "port mapping %s was released at %s", m.ID, m.ReleasedAt.UTC().Format(time.RFC3339)).WithField("id").
		WithHint("list those there are with: remotegpu port ls")
}

// ofOnePort names the fields at fault as they are called where a request asks
// for one port.
func ofOnePort(err error) error {
	for _, p := range problem.All(err) {
		if rest, found := strings.CutPrefix(p.Field, fieldPorts+"[0]"); found {
			p.Field = strings.TrimPrefix(rest, ".")
		}
	}
	return err
}

// livePorts are the mappings that should be published.
func livePorts(env *Environment) []port.Mapping {
	now := time.Now()
	var live []port.Mapping
	for i := range env.Ports {
		if env.Ports[i].Live(now) {
			live = append(live, env.Ports[i])
		}
	}
	return live
}

// newsOfPorts is what a change of ports means for an environment's history.
func newsOfPorts(change *port.Change, why string) []History {
	var news []History
	add := func(kind string, m *port.Mapping, format string, args ...any) {
		text := fmt.Sprintf("host port %d/%s ", m.External, m.Protocol) + fmt.Sprintf(format, args...)
		news = append(news, History{Time: time.Now(), Kind: kind, Message: text + why})
	}
	for i := range change.Drop {
		m := &change.Drop[i]
		add(HappenedPortRemoved, m, "does not lead to port %d (%s) any more", m.Internal, m.Service)
	}
	for i := range change.Add {
		m := &change.Add[i]
		add(HappenedPortAdded, m, "leads to port %d (%s)%s", m.Internal, m.Service, termsText(m))
	}
	for i := range change.Describe {
		m := &change.Describe[i]
		add(HappenedPortChanged, m, "leads to port %d (%s)%s", m.Internal, m.Service, termsText(m))
	}
	return news
}

// termsText says who may come by a mapping and until when.
func termsText(m *port.Mapping) string {
	text := ""
	if len(m.Sources) > 0 {
		sources := make([]string, len(m.Sources))
		for i, source := range m.Sources {
			sources[i] = source.String()
		}
		text += " for " + strings.Join(sources, ", ")
	}
	if !m.ExpiresAt.IsZero() {
		text += " until " + m.ExpiresAt.UTC().Format(time.RFC3339)
	}
	return text
}
