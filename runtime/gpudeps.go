package runtime

import (
	"context"

	"github.com/remotegpu/remotegpu/gpu"
)

// LeaseFunc decides what becomes of the leases of an environment, by the books
// of the moment; it knows the devices itself. An error is returned as it is and
// nothing is written. Added leases have their ids.
type LeaseFunc func(held gpu.Books) (gpu.Change, error)

// LeaseFilter selects leases.
type LeaseFilter struct {
	GPU   string // UUID; "": of all
	Limit int    // 0: no limit
	After string // page cursor as returned by the store
}

// GPUStore keeps who has which GPU, and what is known of GPUs whatever their
// driver says. The devices of its books are not in it. Errors as of Store.
type GPUStore interface {
	// GPUBooks returns all leases that are held, all marks, and what is planned.
	GPUBooks(ctx context.Context) (gpu.Books, error)
	// GPULeases returns leases, ended ones too, newest first, and the cursor of the
	// next page. PAGE_TOKEN_INVALID.
	GPULeases(ctx context.Context, filter LeaseFilter) ([]gpu.Lease, string, error)
	// ChangeGPUs changes the leases of an environment as lease decides and then,
	// in the same transaction, does as UpdateEnvironment. An instance that was
	// made for a lease that ends is planned to be removed.
	ChangeGPUs(ctx context.Context, id string, lease LeaseFunc, change func(*Environment) error) (*Environment, error)
	// PlanInstance keeps that an instance is to be or to go, whatever was planned
	// of it before. ForgetInstance forgets that, unless the other was planned
	// meanwhile. AlreadyExists when another is to be there.
	PlanInstance(ctx context.Context, p gpu.Planned) error
	ForgetInstance(ctx context.Context, p gpu.Planned) error
	// PlanMIG keeps that the MIG mode of a GPU is to be on, or nothing of it.
	PlanMIG(ctx context.Context, uuid string, on bool) error
	// MarkGPU reads, changes and writes the mark of a GPU in one transaction. An
	// error from change is returned as it is and nothing is written.
	MarkGPU(ctx context.Context, uuid string, change func(books gpu.Books, mark *gpu.Mark) error) (gpu.Mark, error)
}
