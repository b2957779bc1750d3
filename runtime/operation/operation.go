// Package operation is the durable queue of long work: creates, deletes,
// pulls, builds. An operation is a row that survives the daemon; a Queue runs
// it under a lease, one at a time per target, retries what is transient and
// lets callers wait, watch and cancel. It knows nothing of what the work is:
// handlers are registered by kind.
package operation

import (
	"context"
	"encoding/json"
	"time"
)

// State is the life of an operation.
type State string

// The states. Succeeded, Failed and Cancelled are final.
const (
	Queued    State = "queued"
	Running   State = "running"
	Succeeded State = "succeeded"
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// Done says whether the state is final.
func (s State) Done() bool { return s == Succeeded || s == Failed || s == Cancelled }

// Problem is a failure as it is kept: the fields of an API error.
type Problem struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
	Field   string `json:"field,omitempty"`
	Hint    string `json:"hint,omitempty"`
}

// Progress is how far an operation is.
type Progress struct {
	Step  string   `json:"step,omitempty"`
	Done  int64    `json:"done,omitempty"`  // bytes for pulls, steps elsewhere
	Total int64    `json:"total,omitempty"` // 0: unknown
	Log   []string `json:"log,omitempty"`   // last lines, oldest first
	// Layers are those of the image that a pull or push transfers, lowest
	// first.
	Layers []Layer `json:"layers,omitempty"`
}

// Layer is how far the transfer of one layer is, in bytes.
type Layer struct {
	Digest string     `json:"digest"`
	Done   int64      `json:"done,omitempty"`
	Total  int64      `json:"total"`
	State  LayerState `json:"state"`
}

// LayerState is where the transfer of a layer is.
type LayerState string

// The states. Present is a layer that was there before and is not transferred.
const (
	LayerWaiting      LayerState = "waiting"
	LayerTransferring LayerState = "transferring"
	LayerTransferred  LayerState = "transferred"
	LayerUnpacked     LayerState = "unpacked"
	LayerPresent      LayerState = "present"
)

// Operation is one durable piece of long work.
type Operation struct {
	ID              string // ULID
	Project         string
	Labels          map[string]string
	Kind            string // "environment.create", "image.pull", …
	Target          string // environment id or image reference; serialises
	RequestID       string // "": none. Unique per project otherwise
	RequestHash     string // hash of the request, to tell a retry from a reuse
	Args            json.RawMessage
	State           State
	Progress        *Progress
	Attempts        int
	Retries         int // those attempts that ended in a failure that was retried
	Shutdowns       int // those attempts that ended because the daemon was stopped, and said so
	Problem         *Problem
	Result          map[string]string
	CancelRequested bool
	NotBefore       time.Time // next attempt, zero: now; further ahead than the longest wait: now as well
	LeaseOwner      string    // who runs it, "" when nobody does
	LeaseExpires    time.Time
	CreatedAt       time.Time
	StartedAt       time.Time
	FinishedAt      time.Time
	Revision        int64 // counts changes, from 1
}

// Filter selects operations. Zero fields select all.
type Filter struct {
	Project string
	Target  string
	Kinds   []string
	States  []State
	Limit   int    // 0: no limit
	After   string // page cursor as returned by the store
}

// Store keeps operations. Errors are errdefs kinds.
type Store interface {
	// InsertOperation writes a new operation. When one with the same project
	// and request id exists it writes nothing and returns that one; otherwise
	// it returns nil.
	InsertOperation(ctx context.Context, op *Operation) (existing *Operation, err error)
	// OperationByRequest returns the operation of a request id, NotFound.
	OperationByRequest(ctx context.Context, project, requestID string) (*Operation, error)
	// Operation returns one, NotFound.
	Operation(ctx context.Context, id string) (*Operation, error)
	// Operations returns operations, newest first, and the next cursor.
	Operations(ctx context.Context, filter Filter) ([]*Operation, string, error)
	// Pending returns the operations that are queued or running, oldest first.
	Pending(ctx context.Context) ([]*Operation, error)
	// UpdateOperation reads, changes and writes one in a single transaction
	// and counts its revision. An error from change is returned as it is and
	// nothing is written.
	UpdateOperation(ctx context.Context, id string, change func(*Operation) error) (*Operation, error)
	// PurgeOperations removes those that were done before the time and
	// returns how many.
	PurgeOperations(ctx context.Context, before time.Time) (int, error)
}
