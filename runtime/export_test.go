package runtime

import "context"

// RestartWait is the pause before the next restart after so many.
var RestartWait = restartWait

// KeepChanges is how many changes a watch can be resumed over.
const KeepChanges = keepChanges

// Spare is what a tick of the reconciler's timer does: it tells whether it needs no
// pass.
func (m *Manager) Spare(ctx context.Context) bool { return m.spare(ctx) }
