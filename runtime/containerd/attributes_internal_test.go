package containerd

import (
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The rules of ioctl are arithmetic: here every request goes through them, as
// libseccomp would do it.
func TestNarrow(t *testing.T) {
	before := seccomp.DefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}})
	profile := seccomp.DefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}})
	narrow(profile)
	rules := slices.DeleteFunc(slices.Clone(profile.Syscalls), func(s specs.LinuxSyscall) bool { return !slices.Contains(s.Names, "ioctl") })
	allows := func(request uint64) bool {
		return slices.ContainsFunc(rules, func(s specs.LinuxSyscall) bool {
			return s.Action == specs.ActAllow && !slices.ContainsFunc(s.Args, func(arg specs.LinuxSeccompArg) bool {
				return arg.Index != 1 || arg.Op != specs.OpMaskedEqual || request&arg.Value != arg.ValueTwo
			})
		})
	}
	for high := range uint64(4) { // what a kernel does not look at, and what it does
		for low := range uint64(1 << 16) {
			request := []uint64{0, 0x40080000, 0xffffffff_c0040000, 0x1_401c0000}[high] | low
			if got, want := allows(request), low != 'f'<<8|2 && low != 'X'<<8|32; got != want {
				t.Fatalf("request %#x: allowed %t, want %t", request, got, want)
			}
		}
	}
	for _, request := range []uint64{unix.FS_IOC_SETFLAGS, 0x40046602, 0x401c5820} {
		if allows(request) {
			t.Errorf("request %#x is allowed", request)
		}
	}
	for _, s := range profile.Syscalls {
		if slices.Contains(s.Names, "file_setattr") {
			t.Errorf("file_setattr: %s", s.Action)
		}
	}
	// Nothing else has changed.
	names := func(p *specs.LinuxSeccomp) (all []string) {
		for _, s := range p.Syscalls {
			all = append(all, s.Names...)
		}
		all = slices.DeleteFunc(all, func(name string) bool { return name == "ioctl" || name == "file_setattr" })
		return all
	}
	if !slices.Equal(names(before), names(profile)) || before.DefaultAction != profile.DefaultAction {
		t.Error("other calls have changed")
	}
	if want := slices.DeleteFunc(before.Architectures, func(a specs.Arch) bool { return a == specs.ArchX32 }); !slices.Equal(want, profile.Architectures) {
		t.Errorf("architectures %q, want %q", profile.Architectures, want)
	}
}
