package containerd

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Type and number, the low 16 bits, of the requests that change a file's
// attributes: FS_IOC_SETFLAGS, in its sizes for 64 and 32 bits, and
// FS_IOC_FSSETXATTR.
const (
	setFlags     = 'f'<<8 | 2
	setAttribute = 'X'<<8 | 32
)

// keepAttributes denies the change of file attributes, with EPERM. The kernel
// lets whoever owns a file give it to another project unless a user namespace
// forbids it, and overlayfs passes that on to the writable layer: its limit
// would count nothing, or a neighbour's. FS_PROJINHERIT_FL, which makes new
// files belong to the project, is among the flags that FS_IOC_SETFLAGS clears.
// They are denied without a limit too: there may be one on another layer, or
// on a volume.
//
// A profile allows, so ioctl is allowed for every request that differs: by a
// bit that both have in common, or by two others that are not alike. Where they
// differ one has what the other has not, so relative to the first of them all
// those bits are 0 in it and 1 in the second; in anything else some 0 is
// followed by a 1, round in a circle. More than 16 bits are not looked at: a
// program may write any direction and size, and a kernel cuts the argument to 32.
func keepAttributes(profile *specs.LinuxSeccomp) {
	for i := range profile.Syscalls {
		profile.Syscalls[i].Names = slices.DeleteFunc(slices.Clone(profile.Syscalls[i].Names), func(name string) bool {
			return name == "ioctl" || name == "file_setattr"
		})
	}
	allow := func(mask, value uint64) {
		profile.Syscalls = append(profile.Syscalls, specs.LinuxSyscall{
			Names: []string{"ioctl"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 1, Value: mask, ValueTwo: value, Op: specs.OpMaskedEqual}},
		})
	}
	var differ []uint64
	for bit := uint64(1); bit < 1<<16; bit <<= 1 {
		if (setFlags^setAttribute)&bit != 0 {
			differ = append(differ, bit)
		} else {
			allow(bit, ^uint64(setFlags)&bit)
		}
	}
	for i, bit := range differ {
		next := differ[(i+1)%len(differ)]
		allow(bit|next, setFlags&bit|^uint64(setFlags)&next)
	}
	profile.Syscalls = slices.DeleteFunc(profile.Syscalls, func(s specs.LinuxSyscall) bool { return len(s.Names) == 0 })
}
