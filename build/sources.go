package build

import (
	"bufio"
	"net/url"
	"slices"
	"strings"
)

// aptSource is one suite at one URI that the host gets packages from.
type aptSource struct {
	uri        string
	suite      string
	components []string
	signedBy   string // path of a keyring, or an armoured key, or ""
}

// parseSourcesList reads the one-line format of sources.list(5). What it does
// not understand it skips: the host's apt is what complains about that.
func parseSourcesList(text string) []aptSource {
	var found []aptSource
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[0] != "deb" {
			continue
		}
		fields = fields[1:]
		var signedBy string
		if strings.HasPrefix(fields[0], "[") {
			end := slices.IndexFunc(fields, func(f string) bool { return strings.HasSuffix(f, "]") })
			if end < 0 || len(fields) < end+3 {
				continue
			}
			for _, option := range fields[:end+1] {
				if value, ok := strings.CutPrefix(strings.Trim(option, "[]"), "signed-by="); ok {
					signedBy = value
				}
			}
			fields = fields[end+1:]
		}
		if len(fields) < 2 {
			continue
		}
		found = append(found, aptSource{uri: fields[0], suite: fields[1], components: fields[2:], signedBy: signedBy})
	}
	return found
}

// parseDeb822 reads the format of *.sources files, one stanza after another.
func parseDeb822(text string) []aptSource {
	var found []aptSource
	stanza := make(map[string]string)
	key := ""
	end := func() {
		if slices.Contains(strings.Fields(stanza["types"]), "deb") && !strings.EqualFold(strings.TrimSpace(stanza["enabled"]), "no") {
			for uri := range strings.FieldsSeq(stanza["uris"]) {
				for suite := range strings.FieldsSeq(stanza["suites"]) {
					found = append(found, aptSource{
						uri: uri, suite: suite, components: strings.Fields(stanza["components"]),
						signedBy: strings.TrimSpace(stanza["signed-by"]),
					})
				}
			}
		}
		clear(stanza)
		key = ""
	}
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.TrimSpace(line) == "":
			end()
		case line[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			if key != "" {
				stanza[key] += "\n" + strings.TrimSpace(line)
			}
		default:
			name, value, _ := strings.Cut(line, ":")
			key = strings.ToLower(strings.TrimSpace(name))
			stanza[key] = strings.TrimSpace(value)
		}
	}
	end()
	return found
}

// mirrors picks, of all the host's sources, those of the distribution itself:
// the release, its updates and its security fixes, each from one place. A
// third party's repository may use the very same suite and component, so a
// source that is signed by the archive's own key, or by none in particular,
// goes before one with a key of its own, and a URI that has the
// distribution's name in its path before one that has not.
func mirrors(sources []aptSource, id, codename string) []aptSource {
	var picked []aptSource
	for _, suffix := range []string{"", "-updates", "-security"} {
		best, bestScore := aptSource{}, -1
		for _, s := range sources {
			if s.suite != codename+suffix && s.suite != "stable"+suffix || !slices.Contains(s.components, "main") {
				continue
			}
			u, err := url.Parse(s.uri)
			if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
				continue
			}
			score := 0
			if s.signedBy == "" || strings.Contains(s.signedBy, id+"-archive-keyring") {
				score += 2
			}
			if strings.Contains(u.Path, id) {
				score++
			}
			if score > bestScore {
				best, bestScore = s, score
				best.suite = codename + suffix
			}
		}
		if bestScore >= 0 {
			picked = append(picked, best)
		} else if suffix == "" {
			return nil // without the release itself the rest is of no use
		}
	}
	return picked
}

// publicMirrors is where a distribution's packages are when the host does not
// say: the distribution's own servers.
func publicMirrors(id, codename, arch string) []aptSource {
	if id == "ubuntu" {
		main, security := "http://archive.ubuntu.com/ubuntu", "http://security.ubuntu.com/ubuntu"
		if arch != "amd64" && arch != "386" {
			main, security = "http://ports.ubuntu.com/ubuntu-ports", "http://ports.ubuntu.com/ubuntu-ports"
		}
		return []aptSource{
			{uri: main, suite: codename},
			{uri: main, suite: codename + "-updates"},
			{uri: security, suite: codename + "-security"},
		}
	}
	return []aptSource{
		{uri: "http://deb.debian.org/debian", suite: codename},
		{uri: "http://deb.debian.org/debian", suite: codename + "-updates"},
		{uri: "http://deb.debian.org/debian-security", suite: codename + "-security"},
	}
}

// bare returns the URI without credentials, and the credentials as a line for
// apt_auth.conf(5), "" when it has none.
func bare(uri string) (clean, auth string) {
	u, err := url.Parse(uri)
	if err != nil || u.User == nil {
		return uri, ""
	}
	password, _ := u.User.Password()
	auth = "machine " + u.Scheme + "://" + u.Host + u.Path + " login " + u.User.Username() + " password " + password + "\n"
	u.User = nil
	return u.String(), auth
}
