package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"

	"github.com/remotegpu/remotegpu/internal/hostexec"
)

// hostAPT is how the host gets its packages: what a build needs to get them
// the same way.
type hostAPT struct {
	id       string // "debian", "ubuntu"; "" when it is neither
	codename string
	sources  []aptSource
	config   string // apt.conf(5) lines about the network
	auth     string // apt_auth.conf(5)
	ca       []byte // PEM certificates
}

// caPath is where the Dockerfiles mount the secret ca-certificates.
const caPath = "/run/secrets/ca-certificates.crt"

// readHost reads the host's apt configuration under root. A host without apt
// has an empty one, which is no error.
func readHost(ctx context.Context, root string) (*hostAPT, error) {
	h := &hostAPT{}
	release, err := readOptional(filepath.Join(root, "etc/os-release"))
	if err != nil {
		return nil, err
	}
	h.id, h.codename = parseRelease(string(release))
	if err := h.readSources(root); err != nil {
		return nil, err
	}
	for _, pattern := range []string{"etc/apt/auth.conf", "etc/apt/auth.conf.d/*.conf"} {
		text, err := readAll(root, pattern)
		if err != nil {
			return nil, err
		}
		h.auth += text
	}
	if h.ca, err = readOptional(filepath.Join(root, "etc/ssl/certs/ca-certificates.crt")); err != nil {
		return nil, err
	}
	return h, h.readConfig(ctx, root)
}

// parseRelease tells the distribution by os-release(5). A derivative is taken
// for the distribution it is made from.
func parseRelease(text string) (id, codename string) {
	values := make(map[string]string)
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[key] = strings.Trim(value, `"'`)
	}
	for _, known := range []string{"ubuntu", "debian"} {
		switch {
		case values["ID"] == known:
			return known, values["VERSION_CODENAME"]
		case known == "ubuntu" && values["UBUNTU_CODENAME"] != "":
			return known, values["UBUNTU_CODENAME"]
		case known == "debian" && values["DEBIAN_CODENAME"] != "":
			return known, values["DEBIAN_CODENAME"]
		}
	}
	return "", ""
}

func (h *hostAPT) readSources(root string) error {
	for _, pattern := range []string{"etc/apt/sources.list", "etc/apt/sources.list.d/*.list"} {
		text, err := readAll(root, pattern)
		if err != nil {
			return err
		}
		h.sources = append(h.sources, parseSourcesList(text)...)
	}
	text, err := readAll(root, "etc/apt/sources.list.d/*.sources")
	if err != nil {
		return err
	}
	h.sources = append(h.sources, parseDeb822(text)...)
	for i, s := range h.sources {
		// A list of mirrors in a file: the first will do.
		if list, ok := strings.CutPrefix(s.uri, "mirror+file:"); ok {
			text, err := readOptional(filepath.Join(root, list))
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(text)) {
				if fields := strings.Fields(line); len(fields) > 0 && strings.HasPrefix(fields[0], "http") {
					h.sources[i].uri = fields[0]
					break
				}
			}
		}
	}
	return nil
}

// readConfig keeps what apt's configuration says about reaching a mirror.
// Names of files are useless in a build, so certificates are collected and
// client keys dropped; so are programs that guess a proxy.
func (h *hostAPT) readConfig(ctx context.Context, root string) error {
	command := []string{"apt-config", "dump"}
	if root != "/" { // apt reads what APT_CONFIG names before anything else
		command = append([]string{"env", "APT_CONFIG=" + filepath.Join(root, "etc/apt/apt.conf")}, command...)
	}
	out, err := hostexec.Run(ctx, nil, command[0], command[1:]...)
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("read apt configuration: %w", context.Cause(ctx))
		}
		return nil // a host without apt, or with a broken one: the build can do without
	}
	keep := []string{"acquire::http::", "acquire::https::", "acquire::check-", "acquire::retries", "acquire::forceipv"}
	drop := []string{"::cainfo", "::capath", "::sslcert", "::sslkey", "::crlfile", "auto-detect", "autodetect"}
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		lower := strings.ToLower(key)
		if !hasAny(lower, keep, strings.HasPrefix) || value == `"";` {
			continue
		}
		if strings.HasSuffix(lower, "::cainfo") {
			more, err := readOptional(strings.Trim(value, `";`))
			if err != nil {
				return err
			}
			h.ca = append(append(h.ca, '\n'), more...)
		}
		if !hasAny(lower, drop, strings.Contains) {
			h.config += key + " " + value + "\n"
		}
	}
	return nil
}

func hasAny(text string, parts []string, has func(string, string) bool) bool {
	for _, part := range parts {
		if has(text, part) {
			return true
		}
	}
	return false
}

// secrets are what RUN steps may mount; see images/desktop-base/Dockerfile.
func (h *hostAPT) secrets() map[string][]byte {
	config, auth := h.config, h.auth
	for _, s := range h.sources {
		_, line := bare(s.uri)
		auth += line
	}
	secrets := make(map[string][]byte)
	if len(bytes.TrimSpace(h.ca)) > 0 {
		secrets["ca-certificates"] = h.ca
		config += "Acquire::https::CAInfo \"" + caPath + "\";\n"
	}
	if config != "" {
		secrets["apt.conf"] = []byte(config)
	}
	if auth != "" {
		secrets["apt-auth"] = []byte(auth)
	}
	return secrets
}

// release is what a base is bootstrapped as and from where: on Ubuntu the
// host's own release, on Debian trixie.
func (h *hostAPT) release() (codename string, sources []aptSource) {
	codename = h.codename
	if h.id != "ubuntu" {
		codename = "trixie"
	}
	sources = mirrors(h.sources, h.id, h.codename)
	if len(sources) == 0 {
		sources = publicMirrors(h.id, h.codename, goruntime.GOARCH)
	}
	for i := range sources {
		sources[i].suite = codename + strings.TrimPrefix(sources[i].suite, h.codename)
		sources[i].components = []string{"main"}
		if h.id == "ubuntu" {
			sources[i].components = []string{"main", "universe"}
		}
	}
	return codename, sources
}

func readOptional(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// readAll joins the files that match, each ended by an empty line.
func readAll(root, pattern string) (string, error) {
	paths, err := filepath.Glob(filepath.Join(root, pattern))
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for _, path := range paths {
		data, err := readOptional(path)
		if err != nil {
			return "", err
		}
		text.Write(data)
		text.WriteString("\n\n")
	}
	return text.String(), nil
}
