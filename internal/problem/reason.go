package problem

import (
	"context"
	"errors"
	"maps"
	"slices"
	"syscall"

	"github.com/containerd/errdefs"
)

// Reason is a machine-readable cause, unique per cause (google.rpc.ErrorInfo
// reason, domain "remotegpu").
type Reason string

// The reasons, grouped by what they are about. docs/api.md documents each.
const (
	FieldInvalid          Reason = "FIELD_INVALID"
	EnvNameInvalid        Reason = "ENV_NAME_INVALID"
	EnvNameExists         Reason = "ENV_NAME_EXISTS"
	EnvNotFound           Reason = "ENV_NOT_FOUND"
	EnvBusy               Reason = "ENV_BUSY"
	EnvNotRunning         Reason = "ENV_NOT_RUNNING"
	EnvNotPaused          Reason = "ENV_NOT_PAUSED"
	EnvNotStartable       Reason = "ENV_NOT_STARTABLE"
	EnvRunning            Reason = "ENV_RUNNING"
	EnvVariableReserved   Reason = "ENV_VARIABLE_RESERVED"
	EtagMismatch          Reason = "ETAG_MISMATCH"
	HostRebooted          Reason = "HOST_REBOOTED"
	ResumeTokenTooOld     Reason = "RESUME_TOKEN_TOO_OLD"
	RequestIDReused       Reason = "REQUEST_ID_REUSED"
	PageTokenInvalid      Reason = "PAGE_TOKEN_INVALID"
	RequestTooLarge       Reason = "REQUEST_TOO_LARGE"
	RequestMalformed      Reason = "REQUEST_MALFORMED"
	Unauthenticated       Reason = "UNAUTHENTICATED"
	MemoryTooSmall        Reason = "MEMORY_TOO_SMALL"
	LimitsRefused         Reason = "LIMITS_REFUSED"
	DiskQuotaUnsupported  Reason = "DISK_QUOTA_UNSUPPORTED"
	UserNotFound          Reason = "USER_NOT_FOUND"
	CommandNotFound       Reason = "COMMAND_NOT_FOUND"
	CommandNotExecutable  Reason = "COMMAND_NOT_EXECUTABLE"
	CommandTimeout        Reason = "COMMAND_TIMEOUT"
	ExecNotStarted        Reason = "EXEC_NOT_STARTED"
	ExecLimit             Reason = "EXEC_LIMIT_REACHED"
	ProcessStartFailed    Reason = "PROCESS_START_FAILED"
	ProcessExited         Reason = "PROCESS_EXITED"
	ImageReferenceBad     Reason = "IMAGE_REFERENCE_INVALID"
	ImageNotFound         Reason = "IMAGE_NOT_FOUND"
	ImageInUse            Reason = "IMAGE_IN_USE"
	ImagePinned           Reason = "IMAGE_PINNED"
	ImageIncomplete       Reason = "IMAGE_INCOMPLETE"
	ImageInvalid          Reason = "IMAGE_INVALID"
	ImageChanged          Reason = "IMAGE_CHANGED"
	ImageArchiveInvalid   Reason = "IMAGE_ARCHIVE_INVALID"
	ImageSourceNotFound   Reason = "IMAGE_SOURCE_NOT_FOUND"
	ImagePlatform         Reason = "IMAGE_PLATFORM_MISMATCH"
	RegistryUnavailable   Reason = "REGISTRY_UNAVAILABLE"
	RegistryDenied        Reason = "REGISTRY_DENIED"
	CredentialsUnusable   Reason = "REGISTRY_CREDENTIALS_UNUSABLE" //nolint:gosec // a name
	CredentialsLost       Reason = "REGISTRY_CREDENTIALS_LOST"     //nolint:gosec // a name
	BuildkitUnconfigured  Reason = "BUILDKIT_NOT_CONFIGURED"
	BuildkitUnavailable   Reason = "BUILDKIT_UNAVAILABLE"
	BuildFailed           Reason = "BUILD_FAILED"
	BaseBootstrapFailed   Reason = "BASE_BOOTSTRAP_FAILED"
	PortOutsidePool       Reason = "PORT_OUTSIDE_POOL"
	PortDenied            Reason = "PORT_DENIED"
	PortTaken             Reason = "PORT_TAKEN"
	PortConflict          Reason = "PORT_CONFLICT"
	PortNotFound          Reason = "PORT_MAPPING_NOT_FOUND"
	PortDuplicate         Reason = "PORT_DUPLICATE"
	PortPoolExhausted     Reason = "PORT_POOL_EXHAUSTED"
	PortRangeInvalid      Reason = "PORT_RANGE_INVALID"
	AddressPoolExhausted  Reason = "ADDRESS_POOL_EXHAUSTED"
	NetworkFailed         Reason = "NETWORK_FAILED"
	NetworkLost           Reason = "NETWORK_LOST"
	FirewallFailed        Reason = "FIREWALL_FAILED"
	FirewallConflict      Reason = "FIREWALL_CONFLICT"
	FirewallContested     Reason = "FIREWALL_CONTESTED"
	IPv6Unavailable       Reason = "IPV6_UNAVAILABLE"
	NeighbourTableFull    Reason = "NEIGHBOUR_TABLE_FULL"
	ConnectionTableFull   Reason = "CONNECTION_TABLE_FULL"
	NoUpstreamDNS         Reason = "NO_UPSTREAM_DNS"
	DNSDisabled           Reason = "DNS_DISABLED"
	DNSListenFailed       Reason = "DNS_LISTEN_FAILED"
	DNSUpstreamLoops      Reason = "DNS_UPSTREAM_LOOPS"
	DNSNameInvalid        Reason = "DNS_NAME_INVALID"
	DNSNameTaken          Reason = "DNS_NAME_TAKEN"
	DNSDataInvalid        Reason = "DNS_DATA_INVALID"
	DNSRecordExists       Reason = "DNS_RECORD_EXISTS"
	DNSRecordConflict     Reason = "DNS_RECORD_CONFLICT"
	DNSRecordNotFound     Reason = "DNS_RECORD_NOT_FOUND"
	DNSRecordLimit        Reason = "DNS_RECORD_LIMIT_REACHED"
	DestinationNotAllowed Reason = "DESTINATION_NOT_ALLOWED"
	MountNotAllowed       Reason = "MOUNT_NOT_ALLOWED"
	MountSourceNotFound   Reason = "MOUNT_SOURCE_NOT_FOUND"
	VolumeNameInvalid     Reason = "VOLUME_NAME_INVALID"
	VolumeExists          Reason = "VOLUME_EXISTS"
	VolumeNotFound        Reason = "VOLUME_NOT_FOUND"
	VolumeInUse           Reason = "VOLUME_IN_USE"
	SnapshotNameInvalid   Reason = "SNAPSHOT_NAME_INVALID"
	SnapshotNameExists    Reason = "SNAPSHOT_NAME_EXISTS"
	SnapshotNotFound      Reason = "SNAPSHOT_NOT_FOUND"
	SnapshotBusy          Reason = "SNAPSHOT_BUSY"
	SnapshotInUse         Reason = "SNAPSHOT_IN_USE"
	SnapshotAmbiguous     Reason = "SNAPSHOT_AMBIGUOUS"
	SnapshotTooDeep       Reason = "SNAPSHOT_TOO_DEEP"
	SnapshotNotCopyable   Reason = "SNAPSHOT_NOT_COPYABLE"
	SnapshotBaseMissing   Reason = "SNAPSHOT_BASE_MISSING"
	SnapshotUnknown       Reason = "SNAPSHOT_UNKNOWN"
	GPUUnavailable        Reason = "GPU_UNAVAILABLE"
	GPUNotFound           Reason = "GPU_NOT_FOUND"
	GPUExhausted          Reason = "GPU_EXHAUSTED"
	GPUModeConflict       Reason = "GPU_MODE_CONFLICT"
	GPUUnhealthy          Reason = "GPU_UNHEALTHY"
	GPUWarning            Reason = "GPU_WARNING"
	GPULost               Reason = "GPU_LOST"
	GPUDrained            Reason = "GPU_DRAINED"
	GPUInUse              Reason = "GPU_IN_USE"
	GPUSharingFailed      Reason = "GPU_SHARING_FAILED"
	GPUNotEnforceable     Reason = "GPU_NOT_ENFORCEABLE"
	GPUCapability         Reason = "GPU_CAPABILITY_UNSUPPORTED"
	GPUPlacementTaken     Reason = "GPU_PLACEMENT_TAKEN"
	GPUPartitionMissing   Reason = "GPU_PARTITION_MISSING"
	GPUUnsupported        Reason = "GPU_UNSUPPORTED"
	GPUSoftwareMissing    Reason = "GPU_SOFTWARE_MISSING"
	MIGInstanceNotFound   Reason = "MIG_INSTANCE_NOT_FOUND"
	FileNotFound          Reason = "FILE_NOT_FOUND"
	FileNotAllowed        Reason = "FILE_NOT_ALLOWED"
	FileConflict          Reason = "FILE_CONFLICT"
	FileExists            Reason = "FILE_EXISTS"
	ArchiveInvalid        Reason = "ARCHIVE_INVALID"
	NoSpace               Reason = "NO_SPACE"
	UploadNotStarted      Reason = "UPLOAD_NOT_STARTED"
	CopyInterrupted       Reason = "COPY_INTERRUPTED"
	CopyLimit             Reason = "COPY_LIMIT_REACHED"
	DesktopAbsent         Reason = "DESKTOP_ABSENT"
	DesktopUnavailable    Reason = "DESKTOP_UNAVAILABLE"
	DesktopSocketBad      Reason = "DESKTOP_SOCKET_REJECTED"
	GPUToolkitMissing     Reason = "GPU_TOOLKIT_MISSING"
	GPUToolkitOld         Reason = "GPU_TOOLKIT_TOO_OLD"
	GPUInjectionFailed    Reason = "GPU_INJECTION_FAILED"
	OperationNotFound     Reason = "OPERATION_NOT_FOUND"
	OperationCancelled    Reason = "OPERATION_CANCELLED"
	OperationInterrupted  Reason = "OPERATION_INTERRUPTED"
	NodeStopping          Reason = "NODE_STOPPING"
	ContainerdDown        Reason = "CONTAINERD_UNAVAILABLE"
	ContainerdTimeout     Reason = "CONTAINERD_TIMEOUT"
	ContainerUnknown      Reason = "CONTAINER_UNKNOWN"
	LogWriterMissing      Reason = "LOG_WRITER_MISSING"
	LogWriterDied         Reason = "LOG_WRITER_DIED"
	StateDirLocked        Reason = "STATE_DIR_LOCKED"
	DatabaseNewer         Reason = "DATABASE_NEWER"
	DatabaseFailed        Reason = "DATABASE_FAILED"
	DiskFull              Reason = "DISK_FULL"
	ConfigInvalid         Reason = "CONFIG_INVALID"
	NotFound              Reason = "NOT_FOUND"
	Unavailable           Reason = "UNAVAILABLE"
	DeadlineExceeded      Reason = "DEADLINE_EXCEEDED"
	Canceled              Reason = "CANCELED"
	Internal              Reason = "INTERNAL"
)

var kinds = map[Reason]error{
	FieldInvalid:          errdefs.ErrInvalidArgument,
	EnvNameInvalid:        errdefs.ErrInvalidArgument,
	EnvNameExists:         errdefs.ErrAlreadyExists,
	EnvNotFound:           errdefs.ErrNotFound,
	EnvBusy:               errdefs.ErrFailedPrecondition,
	EnvNotRunning:         errdefs.ErrFailedPrecondition,
	EnvNotPaused:          errdefs.ErrFailedPrecondition,
	EnvNotStartable:       errdefs.ErrFailedPrecondition,
	EnvRunning:            errdefs.ErrFailedPrecondition,
	EnvVariableReserved:   errdefs.ErrInvalidArgument,
	EtagMismatch:          errdefs.ErrAborted,
	HostRebooted:          errdefs.ErrFailedPrecondition,
	ResumeTokenTooOld:     errdefs.ErrOutOfRange,
	RequestIDReused:       errdefs.ErrAlreadyExists,
	PageTokenInvalid:      errdefs.ErrInvalidArgument,
	RequestTooLarge:       errdefs.ErrResourceExhausted,
	RequestMalformed:      errdefs.ErrInvalidArgument,
	Unauthenticated:       errdefs.ErrUnauthenticated,
	MemoryTooSmall:        errdefs.ErrInvalidArgument,
	LimitsRefused:         errdefs.ErrFailedPrecondition,
	DiskQuotaUnsupported:  errdefs.ErrFailedPrecondition,
	UserNotFound:          errdefs.ErrInvalidArgument,
	CommandNotFound:       errdefs.ErrInvalidArgument,
	CommandNotExecutable:  errdefs.ErrInvalidArgument,
	CommandTimeout:        context.DeadlineExceeded,
	ExecNotStarted:        errdefs.ErrInvalidArgument,
	ExecLimit:             errdefs.ErrResourceExhausted,
	ProcessStartFailed:    errdefs.ErrFailedPrecondition,
	ProcessExited:         errdefs.ErrFailedPrecondition,
	ImageReferenceBad:     errdefs.ErrInvalidArgument,
	ImageNotFound:         errdefs.ErrNotFound,
	ImageInUse:            errdefs.ErrFailedPrecondition,
	ImagePinned:           errdefs.ErrFailedPrecondition,
	ImageIncomplete:       errdefs.ErrFailedPrecondition,
	ImageInvalid:          errdefs.ErrFailedPrecondition,
	ImageChanged:          errdefs.ErrUnavailable,
	ImageArchiveInvalid:   errdefs.ErrInvalidArgument,
	ImageSourceNotFound:   errdefs.ErrNotFound,
	ImagePlatform:         errdefs.ErrFailedPrecondition,
	RegistryUnavailable:   errdefs.ErrUnavailable,
	RegistryDenied:        errdefs.ErrPermissionDenied,
	CredentialsUnusable:   errdefs.ErrFailedPrecondition,
	CredentialsLost:       errdefs.ErrFailedPrecondition,
	BuildkitUnconfigured:  errdefs.ErrFailedPrecondition,
	BuildkitUnavailable:   errdefs.ErrUnavailable,
	BuildFailed:           errdefs.ErrUnknown,
	BaseBootstrapFailed:   errdefs.ErrUnavailable,
	PortOutsidePool:       errdefs.ErrInvalidArgument,
	PortDenied:            errdefs.ErrInvalidArgument,
	PortTaken:             errdefs.ErrAlreadyExists,
	PortConflict:          errdefs.ErrFailedPrecondition,
	PortNotFound:          errdefs.ErrNotFound,
	PortDuplicate:         errdefs.ErrInvalidArgument,
	PortPoolExhausted:     errdefs.ErrResourceExhausted,
	PortRangeInvalid:      errdefs.ErrInvalidArgument,
	AddressPoolExhausted:  errdefs.ErrResourceExhausted,
	NetworkFailed:         errdefs.ErrUnavailable,
	NetworkLost:           errdefs.ErrFailedPrecondition,
	FirewallFailed:        errdefs.ErrUnavailable,
	FirewallConflict:      errdefs.ErrFailedPrecondition,
	IPv6Unavailable:       errdefs.ErrFailedPrecondition,
	NeighbourTableFull:    errdefs.ErrResourceExhausted,
	ConnectionTableFull:   errdefs.ErrResourceExhausted,
	FirewallContested:     errdefs.ErrFailedPrecondition,
	NoUpstreamDNS:         errdefs.ErrFailedPrecondition,
	DNSDisabled:           errdefs.ErrFailedPrecondition,
	DNSListenFailed:       errdefs.ErrUnavailable,
	DNSUpstreamLoops:      errdefs.ErrFailedPrecondition,
	DNSNameInvalid:        errdefs.ErrInvalidArgument,
	DNSNameTaken:          errdefs.ErrAlreadyExists,
	DNSDataInvalid:        errdefs.ErrInvalidArgument,
	DNSRecordExists:       errdefs.ErrAlreadyExists,
	DNSRecordConflict:     errdefs.ErrFailedPrecondition,
	DNSRecordNotFound:     errdefs.ErrNotFound,
	DNSRecordLimit:        errdefs.ErrResourceExhausted,
	DestinationNotAllowed: errdefs.ErrInvalidArgument,
	MountNotAllowed:       errdefs.ErrInvalidArgument,
	MountSourceNotFound:   errdefs.ErrInvalidArgument,
	VolumeNameInvalid:     errdefs.ErrInvalidArgument,
	VolumeExists:          errdefs.ErrAlreadyExists,
	VolumeNotFound:        errdefs.ErrNotFound,
	VolumeInUse:           errdefs.ErrFailedPrecondition,
	SnapshotNameInvalid:   errdefs.ErrInvalidArgument,
	SnapshotNameExists:    errdefs.ErrAlreadyExists,
	SnapshotNotFound:      errdefs.ErrNotFound,
	SnapshotBusy:          errdefs.ErrFailedPrecondition,
	SnapshotInUse:         errdefs.ErrFailedPrecondition,
	SnapshotAmbiguous:     errdefs.ErrFailedPrecondition,
	SnapshotTooDeep:       errdefs.ErrFailedPrecondition,
	SnapshotNotCopyable:   errdefs.ErrFailedPrecondition,
	SnapshotBaseMissing:   errdefs.ErrFailedPrecondition,
	SnapshotUnknown:       errdefs.ErrFailedPrecondition,
	GPUUnavailable:        errdefs.ErrUnavailable,
	GPUNotFound:           errdefs.ErrNotFound,
	GPUExhausted:          errdefs.ErrResourceExhausted,
	GPUModeConflict:       errdefs.ErrFailedPrecondition,
	GPUUnhealthy:          errdefs.ErrFailedPrecondition,
	GPUWarning:            errdefs.ErrFailedPrecondition,
	GPULost:               errdefs.ErrFailedPrecondition,
	GPUDrained:            errdefs.ErrFailedPrecondition,
	GPUInUse:              errdefs.ErrFailedPrecondition,
	GPUSharingFailed:      errdefs.ErrUnavailable,
	GPUNotEnforceable:     errdefs.ErrFailedPrecondition,
	GPUCapability:         errdefs.ErrFailedPrecondition,
	GPUPlacementTaken:     errdefs.ErrAlreadyExists,
	GPUPartitionMissing:   errdefs.ErrFailedPrecondition,
	GPUUnsupported:        errdefs.ErrNotImplemented,
	GPUSoftwareMissing:    errdefs.ErrFailedPrecondition,
	MIGInstanceNotFound:   errdefs.ErrNotFound,
	FileNotFound:          errdefs.ErrNotFound,
	FileNotAllowed:        errdefs.ErrFailedPrecondition,
	FileConflict:          errdefs.ErrFailedPrecondition,
	FileExists:            errdefs.ErrAlreadyExists,
	ArchiveInvalid:        errdefs.ErrInvalidArgument,
	NoSpace:               errdefs.ErrResourceExhausted,
	UploadNotStarted:      errdefs.ErrInvalidArgument,
	CopyInterrupted:       errdefs.ErrAborted,
	CopyLimit:             errdefs.ErrResourceExhausted,
	DesktopAbsent:         errdefs.ErrFailedPrecondition,
	DesktopUnavailable:    errdefs.ErrUnavailable,
	DesktopSocketBad:      errdefs.ErrPermissionDenied,
	GPUToolkitMissing:     errdefs.ErrFailedPrecondition,
	GPUToolkitOld:         errdefs.ErrFailedPrecondition,
	GPUInjectionFailed:    errdefs.ErrFailedPrecondition,
	OperationNotFound:     errdefs.ErrNotFound,
	OperationCancelled:    context.Canceled,
	OperationInterrupted:  errdefs.ErrAborted,
	NodeStopping:          errdefs.ErrUnavailable,
	ContainerdDown:        errdefs.ErrUnavailable,
	ContainerdTimeout:     errdefs.ErrUnavailable,
	ContainerUnknown:      errdefs.ErrFailedPrecondition,
	LogWriterMissing:      errdefs.ErrFailedPrecondition,
	LogWriterDied:         errdefs.ErrFailedPrecondition,
	StateDirLocked:        errdefs.ErrFailedPrecondition,
	DatabaseNewer:         errdefs.ErrFailedPrecondition,
	DatabaseFailed:        errdefs.ErrInternal,
	DiskFull:              errdefs.ErrResourceExhausted,
	ConfigInvalid:         errdefs.ErrInvalidArgument,
	NotFound:              errdefs.ErrNotFound,
	Unavailable:           errdefs.ErrUnavailable,
	DeadlineExceeded:      context.DeadlineExceeded,
	Canceled:              context.Canceled,
	Internal:              errdefs.ErrInternal,
}

// Kind is the errdefs kind (or context error) of the reason.
func (r Reason) Kind() error {
	if kind, ok := kinds[r]; ok {
		return kind
	}
	return errdefs.ErrInternal
}

// Reasons returns every reason, sorted.
func Reasons() []Reason { return slices.Sorted(maps.Keys(kinds)) }

func reasonOfKind(err error) Reason {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return DiskFull
	case errdefs.IsNotFound(err):
		return NotFound
	case errdefs.IsUnavailable(err):
		return Unavailable
	case errors.Is(err, context.DeadlineExceeded), errdefs.IsDeadlineExceeded(err):
		return DeadlineExceeded
	case errors.Is(err, context.Canceled), errdefs.IsCanceled(err):
		return Canceled
	default:
		return Internal
	}
}
