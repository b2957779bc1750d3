package policy_test

import (
	"net/netip"
	"testing"

	"github.com/remotegpu/remotegpu/network/policy"
	"github.com/remotegpu/remotegpu/network/port"
)

func TestDestination(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text, want string // "": refused
	}{
		{"198.51.100.7", "198.51.100.7"},
		{"198.51.100.7/24", ""},
		{"198.51.100.0/24:443/tcp", "198.51.100.0/24:443/tcp"},
		{"10.1.2.3:5000-5010", "10.1.2.3:5000-5010"},
		{"10.1.2.3/udp", "10.1.2.3/udp"},
		{"0.0.0.0/0:53/udp", "0.0.0.0/0:53/udp"},
		{"10.1.2.3:5000-5000", "10.1.2.3:5000"},
		{"", ""},
		{"example.com", ""},
		{"2001:db8::7", "2001:db8::7"},
		{"2001:db8::7/32", ""},
		{"2001:db8::/32/tcp", "2001:db8::/32/tcp"},
		{"[2001:db8::/32]:443/tcp", "[2001:db8::/32]:443/tcp"},
		{"[2001:db8::7]:5000-5010", "[2001:db8::7]:5000-5010"},
		{"[2001:db8::7]", "2001:db8::7"},
		{"[198.51.100.7]:80", "198.51.100.7:80"},
		{"::/0", "::/0"},
		{"2001:db8::/129", ""},
		{"[2001:db8::7]:", ""},
		{"[2001:db8::7", ""},
		{"[2001:db8::7]:0", ""},
		{"::ffff:10.0.0.1", ""},
		{"::ffff:0:0/96", ""},
		{"10.1.2.3/33", ""},
		{"10.1.2.3:0", ""},
		{"10.1.2.3:70000", ""},
		{"10.1.2.3:20-10", ""},
		{"10.1.2.3:", ""},
		{"10.1.2.3/sctp", ""},
		{"fe80::1%eth0", ""},
	} {
		got, err := policy.ParseDestination(c.text)
		if (err == nil) != (c.want != "") || err == nil && got.String() != c.want {
			t.Errorf("%q: %s, %v, want %q", c.text, got, err, c.want)
		}
		if again, err := policy.ParseDestination(c.want); c.want != "" && (err != nil || again != got) {
			t.Errorf("%q reads %s as %v, %v", c.text, c.want, again, err)
		}
	}
}

func TestContains(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		destination, to string
		protocol        port.Protocol
		number          uint16
		want            bool
	}{
		{"198.51.100.0/24", "198.51.100.255", port.TCP, 1, true},
		{"198.51.100.0/24", "198.51.100.255", "", 0, true},
		{"198.51.100.0/24", "198.51.101.0", port.TCP, 1, false},
		{"198.51.100.0/24:80-81", "198.51.100.1", port.UDP, 81, true},
		{"198.51.100.0/24:80-81", "198.51.100.1", port.UDP, 82, false},
		{"198.51.100.0/24:80-81", "198.51.100.1", "", 80, false},
		{"198.51.100.0/24/udp", "198.51.100.1", port.TCP, 80, false},
	} {
		d, err := policy.ParseDestination(c.destination)
		if err != nil {
			t.Fatal(err)
		}
		if got := d.Contains(netip.MustParseAddr(c.to), c.protocol, c.number); got != c.want {
			t.Errorf("%s contains %s %s %d: %v", c.destination, c.to, c.protocol, c.number, got)
		}
	}
}

func TestNobodys(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"0.0.0.0/32": true, "0.0.0.0/8": true, "255.255.255.255/32": true, "::/128": true,
		"0.0.0.0/0": false, "::/0": false, "255.255.255.0/24": false, "1.0.0.0/8": false, "::1/128": false,
	} {
		if got := policy.IsNobodys(netip.MustParsePrefix(text)); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestMetadataOfClouds(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254"} {
		own := netip.MustParseAddr(address)
		if !policy.IsMetadata(netip.PrefixFrom(own, own.BitLen())) {
			t.Errorf("%s can be opened by a policy", address)
		}
	}
}
