package operation

import "errors"

// Permanent marks a failure that another attempt would not mend, whatever its
// kind: the handler has unwound and recorded it. The queue does not retry it
// and does not call Policy.Abandon. nil stays nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanent{err}
}

// IsPermanent says whether err was marked by Permanent.
func IsPermanent(err error) bool {
	_, ok := errors.AsType[*permanent](err)
	return ok
}

type permanent struct{ err error }

func (p *permanent) Error() string { return p.err.Error() }

func (p *permanent) Unwrap() error { return p.err }
