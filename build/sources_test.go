package build

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseSources(t *testing.T) {
	list := `# a comment
deb http://mirror.example/debian bookworm main contrib # of ours
deb-src http://mirror.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] https://mirror.example/debian-security bookworm-security main
deb [ signed-by=/k.gpg ] http://third.example stable main
deb [broken
deb
`
	deb822 := `Types: deb deb-src
URIs: http://a.example/debian http://b.example/debian
Suites: trixie trixie-updates
# a comment
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
Enabled: no
URIs: http://off.example/
Suites: trixie
Components: main
`
	key := "-----BEGIN PGP PUBLIC KEY BLOCK-----\n.\nabc"
	want := []aptSource{
		{"http://mirror.example/debian", "bookworm", []string{"main", "contrib"}, ""},
		{"https://mirror.example/debian-security", "bookworm-security", []string{"main"}, "/usr/share/keyrings/debian-archive-keyring.gpg"},
		{"http://third.example", "stable", []string{"main"}, "/k.gpg"},
		{"http://a.example/debian", "trixie", []string{"main"}, key},
		{"http://a.example/debian", "trixie-updates", []string{"main"}, key},
		{"http://b.example/debian", "trixie", []string{"main"}, key},
		{"http://b.example/debian", "trixie-updates", []string{"main"}, key},
	}
	got := append(parseSourcesList(list), parseDeb822(deb822)...)
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(aptSource{})); diff != "" {
		t.Errorf("parsed (-want +got):\n%s", diff)
	}
}

func TestRelease(t *testing.T) {
	tests := []struct {
		name    string
		host    hostAPT
		release string
		list    string
	}{
		{
			"Debian with a mirror and third parties",
			hostAPT{id: "debian", codename: "bookworm", sources: parseSourcesList(`
deb [signed-by=/etc/apt/keyrings/x.gpg] https://third.example/debian bookworm main
deb cdrom:[Debian] bookworm main
deb http://user:secret@mirror.example/debian bookworm main contrib
deb http://mirror.example/debian bookworm-backports main
deb http://mirror.example/debian-security bookworm-security main
`)},
			"trixie",
			"deb http://mirror.example/debian trixie main\ndeb http://mirror.example/debian-security trixie-security main\n",
		},
		{
			"Debian without sources",
			hostAPT{id: "debian", codename: "bookworm"},
			"trixie",
			"deb http://deb.debian.org/debian trixie main\ndeb http://deb.debian.org/debian trixie-updates main\n" +
				"deb http://deb.debian.org/debian-security trixie-security main\n",
		},
		{
			"Ubuntu keeps its own release",
			hostAPT{id: "ubuntu", codename: "jammy", sources: parseSourcesList(`
deb http://de.archive.ubuntu.com/ubuntu/ jammy main restricted
deb http://de.archive.ubuntu.com/ubuntu/ jammy-updates main restricted
`)},
			"jammy",
			"deb http://de.archive.ubuntu.com/ubuntu/ jammy main universe\ndeb http://de.archive.ubuntu.com/ubuntu/ jammy-updates main universe\n",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := newPlan(&test.host)
			if p.codename != test.release || p.list != test.list {
				t.Errorf("release %s, sources\n%s\nwant %s\n%s", p.codename, p.list, test.release, test.list)
			}
		})
	}
}

func TestParseRelease(t *testing.T) {
	for text, want := range map[string][2]string{
		"ID=debian\nVERSION_CODENAME=bookworm\n":                               {"debian", "bookworm"},
		"ID=ubuntu\nVERSION_CODENAME=jammy\nUBUNTU_CODENAME=jammy\n":           {"ubuntu", "jammy"},
		"ID=linuxmint\nVERSION_CODENAME=virginia\nUBUNTU_CODENAME=\"jammy\"\n": {"ubuntu", "jammy"},
		"ID=fedora\n": {"", ""},
		"":            {"", ""},
	} {
		if id, codename := parseRelease(text); id != want[0] || codename != want[1] {
			t.Errorf("%q is %s %s, want %s", text, id, codename, want)
		}
	}
}
