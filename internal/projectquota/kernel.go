package projectquota

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's interface: FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR of
// linux/fs.h, and the Q_X commands of linux/dqblk_xfs.h, which ext4 answers
// too. quotactl_fd(2) needs no path of a block device, so a filesystem need not
// have one here.
const (
	getAttributesCall = 0x801c581f // _IOR('X', 31, struct fsxattr)
	setAttributesCall = 0x401c5820 // _IOW('X', 32, struct fsxattr)
	inherit           = 0x200      // FS_XFLAG_PROJINHERIT

	projectQuota     = 2          // PRJQUOTA
	getQuotaCommand  = 'X'<<8 + 3 // Q_XGETQUOTA
	setLimitCommand  = 'X'<<8 + 4 // Q_XSETQLIM
	getStateCommand  = 'X'<<8 + 8 // Q_XGETQSTATV
	nextQuotaCommand = 'X'<<8 + 9 // Q_XGETNEXTQUOTA

	accounting  = 1 << 4 // FS_QUOTA_PDQ_ACCT
	enforcement = 1 << 5 // FS_QUOTA_PDQ_ENFD

	diskQuotaVersion = 1           // FS_DQUOT_VERSION
	stateVersion     = 1           // FS_QSTATV_VERSION1
	projectKind      = 1 << 1      // FS_PROJ_QUOTA
	blockLimits      = 1<<2 | 1<<3 // FS_DQ_BSOFT | FS_DQ_BHARD
)

// attributes is struct fsxattr.
type attributes struct {
	flags, extentSize, extents, project, cowExtentSize uint32
	_                                                  [8]byte
}

// diskQuota is struct fs_disk_quota.
type diskQuota struct {
	version, kind                              int8
	fields                                     uint16
	id                                         uint32
	blockHard, blockSoft, filesHard, filesSoft uint64 // blocks of 512 bytes
	blocks, files                              uint64
	filesTimer, blocksTimer                    int32
	filesWarnings, blocksWarnings              uint16
	timersHigh                                 [3]int8
	_                                          int8
	realtimeHard, realtimeSoft, realtimeBlocks uint64
	realtimeTimer                              int32
	realtimeWarnings                           uint16
	_                                          int16
	_                                          [8]byte
}

// quotaFile is struct fs_qfilestatv.
type quotaFile struct {
	inode, blocks uint64
	extents       uint32
	_             uint32
}

// quotaState is struct fs_quota_statv.
type quotaState struct {
	version                                     int8
	_                                           uint8
	flags                                       uint16
	cached                                      uint32
	user, group, project                        quotaFile
	blocksTimer, filesTimer, realtimeTimer      int32
	blocksWarnings, filesWarnings, realtimeWarn uint16
	_                                           uint16
	_                                           uint32
	_                                           [7]uint64
}

func getAttributes(file *os.File) (a attributes, err error) {
	err = ioctl(file, getAttributesCall, &a)
	return a, err
}

func setAttributes(file *os.File, a attributes) error { return ioctl(file, setAttributesCall, &a) }

func ioctl(file *os.File, call uintptr, a *attributes) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), call, uintptr(unsafe.Pointer(a))); errno != 0 { //nolint:gosec // the kernel's struct
		return errno
	}
	return nil
}

func quotactl(file *os.File, command uintptr, id uint32, argument unsafe.Pointer) error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, file.Fd(), command<<8|projectQuota, uintptr(id), uintptr(argument), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func getState(file *os.File) (state quotaState, err error) {
	state.version = stateVersion
	err = quotactl(file, getStateCommand, 0, unsafe.Pointer(&state)) //nolint:gosec // the kernel's struct
	return state, err
}

// getQuota tells what a project uses; nothing when the filesystem has never
// heard of it.
func getQuota(file *os.File, id uint32) (Quota, error) {
	var q diskQuota
	err := quotactl(file, getQuotaCommand, id, unsafe.Pointer(&q)) //nolint:gosec // the kernel's struct
	if err == unix.ENOENT {                                        //nolint:errorlint // it is the bare number
		return Quota{ID: id}, nil
	}
	if err != nil {
		return Quota{}, os.NewSyscallError("quotactl_fd", err)
	}
	return q.quota(), nil
}

// nextQuota is the quota of the next project from id on that the filesystem
// knows, ENOENT without one.
func nextQuota(file *os.File, id uint32) (Quota, error) {
	var q diskQuota
	if err := quotactl(file, nextQuotaCommand, id, unsafe.Pointer(&q)); err != nil { //nolint:gosec // the kernel's struct
		return Quota{}, os.NewSyscallError("quotactl_fd", err)
	}
	return q.quota(), nil
}

func (q *diskQuota) quota() Quota {
	return Quota{ID: q.id, Used: int64(q.blocks) * Block, Limit: int64(q.blockHard) * Block, Files: int64(q.files)}
}

// setLimit sets a project's limit in blocks, 0 for none.
func setLimit(file *os.File, id uint32, blocks uint64) error {
	q := diskQuota{version: diskQuotaVersion, kind: projectKind, fields: blockLimits, id: id, blockHard: blocks, blockSoft: blocks}
	return os.NewSyscallError("quotactl_fd", quotactl(file, setLimitCommand, id, unsafe.Pointer(&q))) //nolint:gosec // the kernel's struct
}
