package rootfs

import (
	"bytes"
	"errors"
	"io/fs"

	"github.com/moby/sys/user"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// accountsLimit bounds /etc/passwd and /etc/group: a tenant writes them.
const accountsLimit = 1 << 20

// Owner turns "name", "uid", "name:group" and "uid:gid" into numbers. accounts
// says whether names are looked up in the root's own files. "" is root.
// USER_NOT_FOUND.
func (r *Root) Owner(text string, accounts bool) (uid, gid int, err error) {
	if text == "" {
		return 0, 0, nil
	}
	var passwd, group []byte
	if accounts {
		if passwd, err = r.readSmall("/etc/passwd", accountsLimit); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, 0, err
		}
		if group, err = r.readSmall("/etc/group", accountsLimit); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, 0, err
		}
	}
	found, err := user.GetExecUser(text, nil, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return 0, 0, problem.New(problem.UserNotFound, "there is no user %q", text).WithField("owner").WithCause(err).
			WithHint("use numbers, as in 1000:1000; names are those of the environment's /etc/passwd")
	}
	return found.Uid, found.Gid, nil
}
