package containerd

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// narrow takes from containerd's default profile what no environment needs: the
// change of file attributes, and the ABI x32. Distributions build no programs
// for x32, and a runtime compiles the profile for each ABI anew at every create
// and exec: this one was a third of that (ADR 0048).
func narrow(profile *specs.LinuxSeccomp) {
	keepAttributes(profile)
	profile.Architectures = slices.DeleteFunc(profile.Architectures, func(a specs.Arch) bool { return a == specs.ArchX32 })
}
