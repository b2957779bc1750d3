package volume

import (
	"context"
	"errors"
)

// ErrAttach is what FailAttach makes the manager fail with.
var ErrAttach = errors.New("attach was told to fail")

// FailAttach makes the n-th attach (from 1) of m fail.
func FailAttach(m *Manager, n int) {
	calls := 0
	attach := m.attach
	m.attach = func(t *tree, dir int, name string) error {
		if calls++; calls == n {
			return ErrAttach
		}
		return attach(t, dir, name)
	}
}

// RemoveWith makes m remove the files of deleted volumes with remove, which gets
// what would do it.
func RemoveWith(m *Manager, remove func(path string, do func() error) error) {
	m.remove = func(ctx context.Context, path string) error {
		return remove(path, func() error { return removeTree(ctx, path) })
	}
}

// UseMount makes m attach with mount(2), as on a kernel without open_tree(2).
func UseMount(m *Manager) {
	m.attach = (*tree).attachOld
}

// Unescape is unescape.
func Unescape(field string) string { return unescape(field) }

// LimitSize makes Size of m look at fewer files, and keep fewer paths.
func LimitSize(m *Manager, entries, pending int) {
	m.sizes.entries, m.sizes.pending = entries, pending
}
