package dns

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"
	miekg "github.com/miekg/dns"
)

// MaxText is how long the text of a TXT record may be, bytes.
const MaxText = 1024

// parse reads the data of a record of the environment that is called own, in a
// project whose names are in domain.
func (r *Record) parse(own, domain wireName) (record, error) {
	ttl := r.TTL
	if ttl == 0 {
		ttl = DefaultTTL
	}
	switch r.Type {
	case A, AAAA:
		address, err := netip.ParseAddr(r.Data)
		if err != nil || address.Zone() != "" || address.Is4() != (r.Type == A) || address.Is4In6() {
			return record{}, badData(r, "an "+map[Type]string{A: "IPv4", AAAA: "IPv6"}[r.Type]+" address")
		}
		return addressRecord(address, ttl), nil
	case CNAME:
		target, err := r.target(r.Data, own, domain)
		return nameRecord(miekg.TypeCNAME, target, ttl), err
	case TXT:
		if r.Data == "" || len(r.Data) > MaxText || strings.ContainsFunc(r.Data, unicode.IsControl) {
			return record{}, badData(r, fmt.Sprintf("1 to %d bytes of text in one line", MaxText))
		}
		return textRecord(r.Data, ttl), nil
	case SRV:
		fields := strings.Fields(r.Data)
		if len(fields) == 3 {
			fields = append(fields, "")
		}
		if len(fields) != 4 {
			return record{}, badData(r, "PRIORITY WEIGHT PORT [TARGET]")
		}
		var numbers [3]uint16
		for i := range numbers {
			number, err := strconv.ParseUint(fields[i], 10, 16)
			if err != nil {
				return record{}, badData(r, "PRIORITY WEIGHT PORT [TARGET], numbers up to 65535")
			}
			numbers[i] = uint16(number)
		}
		target, err := r.target(fields[3], own, domain)
		return srvRecord(numbers[0], numbers[1], numbers[2], target, ttl), err
	}
	return record{}, fmt.Errorf("records of type %q cannot be made: %w", r.Type, errdefs.ErrInvalidArgument)
}

// target is the name that data leads to.
func (r *Record) target(name string, own, domain wireName) (wireName, error) {
	if name == "" || name == "@" {
		return own, nil
	}
	var target wireName
	if !strings.Contains(name, ".") {
		target = below(strings.ToLower(name), domain)
	} else if IsName(strings.TrimSuffix(name, ".")) {
		target = toWire(name)
	}
	if target == "" || !IsName(strings.TrimSuffix(name, ".")) {
		return "", badData(r, "a domain name")
	}
	return target, nil
}

func badData(r *Record, want string) error {
	return fmt.Errorf("%q is not the data of a record of type %s, which is %s: %w", r.Data, r.Type, want, errdefs.ErrInvalidArgument)
}

// Check says what is wrong with the record itself: InvalidArgument. Whether
// its name is free is up to the caller.
func (r *Record) Check() error {
	if r.Alias {
		if !isLabel(r.Name) || strings.HasPrefix(r.Name, "_") || r.Name == "localhost" {
			return fmt.Errorf("%q is not a name of one label: %w", r.Name, errdefs.ErrInvalidArgument)
		}
	} else if r.Name != "" && !isOwner(r.Name) {
		return fmt.Errorf("%q is not a name: %w", r.Name, errdefs.ErrInvalidArgument)
	}
	_, err := r.parse("\x01a\x00", "\x00")
	return err
}

// isOwner says whether records can be at a name: its first label may be "*".
func isOwner(name string) bool {
	rest, wild := strings.CutPrefix(name, "*")
	if wild {
		rest = strings.TrimPrefix(rest, ".")
		return name == "*" || rest != "" && name[1] == '.' && IsName(rest)
	}
	return IsName(name)
}

// IsName says whether name is a domain name of letters, digits, "-" and "_",
// without a dot at its end, of at most 200 characters: what it is put before
// needs room, too.
func IsName(name string) bool {
	if len(name) > 200 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if !isLabel(label) {
			return false
		}
	}
	return true
}

func isLabel(label string) bool {
	if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' {
		return false
	}
	for i := range len(label) {
		c := lowerByte(label[i])
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}
