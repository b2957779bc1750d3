package cli_test

import (
	"testing"

	"github.com/remotegpu/remotegpu/internal/cli"
)

// What people write behind flags is refused with a hint, or means something.
func FuzzFlags(f *testing.F) {
	for _, text := range []string{
		"", "0", "8G", "8GiB", "1.5k", "-1", "1e9", "1e400T", "NaN", "inf", "0x10", "9223372036854775807", "9223372036854775808", "1_000", "G", "8 G",
		"ssh", "ssh:22", "custom:8080", "22000:ssh", "8080:80/udp", "custom:8080/tcp", ":", "65536:1", "1-2:3", "novnc:", "/a:/b", "/a:/b:ro", "data:/data", "a:b:c:d",
		"/scratch", "/scratch:size=1G", "type=bind,source=/a,target=/b", "type=tmpfs,target=/t,size=64M", "type=,target", "readonly", "=,=,=",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		size, err := cli.ParseSize(text)
		if size < 0 || err != nil && size != 0 {
			t.Errorf("size %q is %d, %v", text, size, err)
		}
		for what, parse := range map[string]func(string) error{
			"size": func(string) error { return err }, "port": cli.ParsePort, "volume": cli.ParseVolume, "tmpfs": cli.ParseTmpfs, "mount": cli.ParseMount,
		} {
			if err := parse(text); err != nil && err.Error() == "" {
				t.Errorf("%s %q is refused without a word", what, text)
			}
		}
	})
}
