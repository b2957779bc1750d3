// Package rootfs reads and writes files below a directory whose owner may be
// hostile and changes it at the same time: the root of an environment, or a
// volume. It takes in and gives out tar streams.
//
// What it does is always relative to descriptors. A path of the caller is
// resolved by the kernel in one step and cannot leave the root (openat2(2),
// RESOLVE_IN_ROOT); what is in an archive cannot leave the directory that it
// is taken out in, nor go through a link there (RESOLVE_BENEATH,
// RESOLVE_NO_SYMLINKS). Nothing but directories and plain files is ever
// opened, after it was seen to be one on the very descriptor: no device acts,
// no FIFO waits. The kernel's own file systems are not entered.
package rootfs
