package cli

import (
	"errors"
	"io/fs"
	"os"
)

// ownDescriptor is -1: Windows has no names for descriptors.
func ownDescriptor(string) int { return -1 }

func duplicate(int, string) (*os.File, error) { return nil, errors.ErrUnsupported }

// ownerOf knows nothing: a new file has the access rights of its directory.
func ownerOf(fs.FileInfo) (uid, gid int, known bool) { return 0, 0, false }

// identityOf knows nothing: a file with several names is copied several times.
func identityOf(fs.FileInfo) (fileID, bool) { return fileID{}, false }

func umask() fs.FileMode { return 0 }
