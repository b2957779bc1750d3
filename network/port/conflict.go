package port

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// Error names the port.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("host port %d/%s is held already", e.Port, e.Protocol)
}

// Unwrap makes it an AlreadyExists.
func (e *ConflictError) Unwrap() error { return errdefs.ErrAlreadyExists }
