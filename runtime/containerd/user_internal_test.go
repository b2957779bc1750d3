package containerd

import (
	"io/fs"
	"math"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// The account files of an environment are its tenant's. They are read without
// a container here, so this is a test from within.
func FuzzFindUser(f *testing.F) {
	for _, name := range []string{"", "root", "app", "app:staff", "1000", "1000:1000", "-1", "4294967296", "4294967296:0", ":", "a:b:c"} {
		f.Add(name, "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/:\n", "staff:x:50:app,root\n")
		f.Add(name, "app:x:4294967296:-5::/:\nroot:x:99999999999999999999:0\n:::\n", "staff:x:4294967295:app\nwheel:x:-1:app\n")
		f.Add(name, "", "")
	}
	f.Fuzz(func(t *testing.T, name, passwd, group string) {
		user, err := findUser(name, func(file string) ([]byte, error) {
			switch {
			case file == "etc/passwd" && passwd != "":
				return []byte(passwd), nil
			case file == "etc/group" && group != "":
				return []byte(group), nil
			}
			return nil, fs.ErrNotExist
		})
		if err != nil {
			if p := problem.Of(err); p.Reason != problem.UserNotFound || p.Field == "" || p.Hint == "" {
				t.Errorf("%q: %v", name, err)
			}
			return
		}
		for _, id := range append(user.AdditionalGids, user.UID, user.GID) {
			if id > math.MaxInt32 {
				t.Errorf("%q in %q and %q is %+v", name, passwd, group, user)
			}
		}
	})
}
