// Package volume turns the mounts that a request asks for into host paths a
// container runtime may bind: a host path is opened beneath an allowed root
// with openat2(2) and pinned by a mount of its own, so that nobody can swap
// it for a link later. It knows nothing of containers.
package volume

// Type is where a mount's content comes from.
type Type string

// The types.
const (
	Bind   Type = "bind"   // a host path under an allowed root
	Volume Type = "volume" // a named volume that the node manages
	Tmpfs  Type = "tmpfs"  // memory
)

// Mount is one mount as requested.
type Mount struct {
	Type      Type   `json:"type"`
	Source    string `json:"source,omitempty"` // Bind: absolute path; Volume: name
	Target    string `json:"target"`           // absolute path inside
	ReadOnly  bool   `json:"read_only,omitempty"`
	SizeBytes int64  `json:"size_bytes,omitempty"` // Tmpfs; 0: 64 MiB
}

// Staged is a mount that is ready: bind Source (or, for Tmpfs, mount a tmpfs)
// at Target with Options.
type Staged struct {
	FSType  string // "bind" or "tmpfs"
	Source  string // staged host path, "tmpfs" for Tmpfs
	Target  string
	Options []string // mount(8) options, for example "rbind", "ro", "nosuid"
}
