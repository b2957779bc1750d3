package cli

import (
	"encoding/csv"
	"os"
	"strconv"
	"strings"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// keyValues reads KEY=VALUE words.
func keyValues(what string, words []string) (map[string]string, error) {
	if len(words) == 0 {
		return nil, nil
	}
	found := make(map[string]string, len(words))
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		if key == "" {
			return nil, usagef("write KEY=VALUE", "%s %q has no key", what, word)
		}
		found[key] = value
	}
	return found, nil
}

// variables reads files of variables and then single ones, which win. A name
// alone takes the value it has here, and nothing where it has none.
func (a *app) variables(words, files []string) (map[string]string, error) {
	var lines []string
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, usagef("name a file with lines NAME=VALUE", "read variables: %v", err)
		}
		for line := range strings.Lines(string(text)) {
			line = strings.TrimRight(line, "\r\n")
			if trimmed := strings.TrimSpace(line); trimmed != "" && !strings.HasPrefix(trimmed, "#") {
				lines = append(lines, strings.TrimLeft(line, " \t"))
			}
		}
	}
	var pairs []string
	for _, word := range append(lines, words...) {
		if word != "" && !strings.Contains(word, "=") {
			value := a.getenv(word)
			if value == "" {
				continue
			}
			word += "=" + value
		}
		pairs = append(pairs, word)
	}
	return keyValues("variable", pairs)
}

func (f *createFlags) mountRequests() ([]*remotegpuv1.Mount, error) {
	var mounts []*remotegpuv1.Mount
	for _, kind := range []struct {
		words []string
		parse func(string) (*remotegpuv1.Mount, error)
	}{{f.volumes, parseVolume}, {f.mounts, parseMount}, {f.tmpfs, parseTmpfs}} {
		for _, word := range kind.words {
			mount, err := kind.parse(word)
			if err != nil {
				return nil, err
			}
			mounts = append(mounts, mount)
		}
	}
	return mounts, nil
}

// parseVolume reads SOURCE:TARGET[:ro].
func parseVolume(text string) (*remotegpuv1.Mount, error) {
	parts := strings.Split(text, ":")
	if len(parts) == 3 && (parts[2] == "ro" || parts[2] == "rw") {
		mount, err := parseVolume(parts[0] + ":" + parts[1])
		if mount != nil {
			mount.ReadOnly = parts[2] == "ro"
		}
		return mount, err
	}
	if len(parts) != 2 || parts[0] == "" || parts[1] == "" {
		return nil, usagef("write SOURCE:TARGET or SOURCE:TARGET:ro; --mount takes paths with colons", "mount %q is not one", text)
	}
	mount := &remotegpuv1.Mount{Type: remotegpuv1.MountType_MOUNT_TYPE_VOLUME, Source: parts[0], Target: parts[1]}
	switch {
	case strings.HasPrefix(parts[0], "/"):
		mount.Type = remotegpuv1.MountType_MOUNT_TYPE_BIND
	case strings.ContainsAny(parts[0], `/\~`) || strings.HasPrefix(parts[0], "."):
		return nil, usagef("write an absolute path of the node, or the name of a volume",
			"mount %q: the source is relative, and the node does not know this directory", text)
	}
	return mount, nil
}

// parseTmpfs reads TARGET[:OPTION[,OPTION...]].
func parseTmpfs(text string) (*remotegpuv1.Mount, error) {
	target, options, said := strings.Cut(text, ":")
	mount := &remotegpuv1.Mount{Type: remotegpuv1.MountType_MOUNT_TYPE_TMPFS, Target: target}
	if !said {
		return mount, nil
	}
	for option := range strings.SplitSeq(options, ",") {
		if err := mountOption(mount, text, option); err != nil {
			return nil, err
		}
	}
	return mount, nil
}

// parseMount reads comma-separated key=value pairs, quoted as in CSV.
func parseMount(text string) (*remotegpuv1.Mount, error) {
	options, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return nil, usagef("write type=bind,source=/a,target=/b", "mount %q: %v", text, err)
	}
	mount := &remotegpuv1.Mount{Type: remotegpuv1.MountType_MOUNT_TYPE_VOLUME}
	for _, option := range options {
		if err := mountOption(mount, text, option); err != nil {
			return nil, err
		}
	}
	if mount.GetTarget() == "" {
		return nil, usagef("add target=/path", "mount %q has no target", text)
	}
	return mount, nil
}

func mountOption(mount *remotegpuv1.Mount, text, option string) error {
	key, value, _ := strings.Cut(option, "=")
	switch key {
	case "type":
		number := remotegpuv1.MountType_value["MOUNT_TYPE_"+strings.ToUpper(value)]
		if number == 0 {
			return usagef("use type=bind, type=volume or type=tmpfs", "mount %q: type %q is not one", text, value)
		}
		mount.Type = remotegpuv1.MountType(number)
	case "source", "src":
		mount.Source = value
	case "target", "dst", "destination":
		mount.Target = value
	case "readonly", "ro":
		mount.ReadOnly = value == "" || value == "true" || value == "1"
	case "rw":
		mount.ReadOnly = false
	case "size":
		bytes, err := parseSize("mount "+strconv.Quote(text)+": size", value)
		mount.SizeBytes = bytes
		return err
	default:
		return usagef("options are type, source, target, readonly and size", "mount %q: option %q is unknown", text, option)
	}
	return nil
}
