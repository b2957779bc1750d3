package build

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

const (
	// fresh is how long a bootstrapped base is built on before it is made
	// anew: its packages age, and so do the security fixes it lacks.
	fresh = 7 * 24 * time.Hour
	// bootstrapTimeout bounds mmdebstrap; it takes a minute with a near mirror.
	bootstrapTimeout = 30 * time.Minute

	labelKey     = "io.remotegpu.base.key"     // what the base was made from
	labelCreated = "io.remotegpu.base.created" // when, RFC 3339
)

// plan is a base to bootstrap.
type plan struct {
	codename string
	ref      string
	mirror   string // host name, for people
	list     string // sources.list of the base, without credentials
	keyrings []string
	keys     []string // armoured keys that sources carry in themselves
	auth     string
	key      string
}

func newPlan(host *hostAPT) plan {
	codename, sources := host.release()
	p := plan{codename: codename, ref: "docker.io/remotegpu/base:" + codename, auth: host.auth}
	for _, s := range sources {
		uri, auth := bare(s.uri)
		p.auth += auth
		if u, err := url.Parse(uri); err == nil && p.mirror == "" {
			p.mirror = u.Host
		}
		option := ""
		if strings.HasPrefix(s.signedBy, "/") {
			option = "[signed-by=" + s.signedBy + "] "
			if !slices.Contains(p.keyrings, s.signedBy) {
				p.keyrings = append(p.keyrings, s.signedBy)
			}
		} else if s.signedBy != "" && !slices.Contains(p.keys, s.signedBy) {
			p.keys = append(p.keys, s.signedBy)
		}
		p.list += "deb " + option + uri + " " + s.suite + " " + strings.Join(s.components, " ") + "\n"
	}
	sum := sha256.Sum256([]byte("1\n" + p.list))
	p.key = hex.EncodeToString(sum[:8])
	return p
}

// bootstrapped returns the base for this host, making it when there is no
// recent one. When it cannot be made an old one serves.
func (b *Builder) bootstrapped(ctx context.Context, host *hostAPT, why string, progress func(operation.Progress)) (base, error) {
	p := newPlan(host)
	unlock, err := b.bases.Lock(ctx, p.ref)
	if err != nil {
		return base{}, fmt.Errorf("wait for base %s: %w", p.ref, err)
	}
	defer unlock()
	why += ": "
	image, err := b.cfg.Images.Image(ctx, p.ref)
	if err != nil && !errdefs.IsNotFound(err) {
		return base{}, fmt.Errorf("look for base %s: %w", p.ref, err)
	}
	usable := err == nil && image.Labels[labelKey] == p.key
	made, _ := time.Parse(time.RFC3339, image.Labels[labelCreated]) // zero, which is old, when it says nothing
	if usable && time.Since(made) < fresh {
		return base{p.ref, why + fmt.Sprintf("%s bootstrapped from %s on %s", p.codename, p.mirror, made.Format(time.DateOnly))}, nil
	}
	err = b.bootstrap(ctx, host, p, progress)
	switch {
	case err == nil:
		return base{p.ref, why + "bootstrapped " + p.codename + " from " + p.mirror}, nil
	case ctx.Err() == nil && usable:
		b.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "cannot renew base; building on the old one",
			slog.String("base", p.ref), slog.Time("made", made), slog.Any("error", err))
		return base{p.ref, why + fmt.Sprintf("%s bootstrapped from %s on %s, since it could not be renewed",
			p.codename, p.mirror, made.Format(time.DateOnly))}, nil
	}
	return base{}, err
}

func (b *Builder) bootstrap(ctx context.Context, host *hostAPT, p plan, progress func(operation.Progress)) error {
	rootfs := filepath.Join(b.cfg.CacheDir, "base-"+p.codename+"-"+p.key+".tar")
	info, err := os.Stat(rootfs)
	if err != nil || time.Since(info.ModTime()) >= fresh {
		if err := b.debootstrap(ctx, host, p, rootfs, progress); err != nil {
			return err
		}
	}
	progress(operation.Progress{Step: "importing " + p.ref})
	return b.importBase(ctx, p, rootfs)
}

// importBase streams the root file system into the image store.
func (b *Builder) importBase(ctx context.Context, p plan, rootfs string) error {
	file, err := os.Open(rootfs)
	if err != nil {
		return fmt.Errorf("import base %s: %w", p.ref, err)
	}
	defer file.Close() //nolint:errcheck // it is only read
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("import base %s: %w", p.ref, err)
	}
	created := info.ModTime().UTC().Truncate(time.Second)
	labels := map[string]string{labelKey: p.key, labelCreated: created.Format(time.RFC3339)}
	reader, writer := io.Pipe()
	written := make(chan struct{})
	go func() { // ends when all is written, or at the close of the reader below
		defer close(written)
		_ = writer.CloseWithError(writeArchive(writer, file, p.ref, created, labels)) // never fails
	}()
	_, err = b.cfg.Images.Import(ctx, reader, p.ref)
	_ = reader.Close() // never fails
	<-written          // before file is closed
	if err != nil {
		return fmt.Errorf("import base %s: %w", p.ref, err)
	}
	return nil
}

// debootstrap makes the root file system and puts it at target, whole or not
// at all.
func (b *Builder) debootstrap(ctx context.Context, host *hostAPT, p plan, target string, progress func(operation.Progress)) (err error) {
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return problem.New(problem.BaseBootstrapFailed, "no registry has the base image, and mmdebstrap, which could make one, is not installed").
			WithHint("install it (apt-get install mmdebstrap), or name a base image that is at hand").WithCause(err)
	}
	if host.id == "" {
		return problem.New(problem.BaseBootstrapFailed, "no registry has the base image, and this host is neither Debian nor Ubuntu, so there is no package mirror to make one from").
			WithHint("pull or import a base image and name it")
	}
	if err := os.MkdirAll(b.cfg.CacheDir, 0o700); err != nil {
		return fmt.Errorf("make cache directory: %w", err)
	}
	b.sweep(ctx, target)
	work, err := os.MkdirTemp(b.cfg.CacheDir, "bootstrap-*")
	if err != nil {
		return fmt.Errorf("make bootstrap directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	args, err := p.prepare(work, host)
	if err != nil {
		return fmt.Errorf("prepare bootstrap: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, bootstrapTimeout)
	defer cancel()
	step := "bootstrapping " + p.codename + " from " + p.mirror
	progress(operation.Progress{Step: step})
	said := &lineWriter{observe: func(lines []string) { progress(operation.Progress{Step: step, Log: lines}) }}
	program := append([]string{"mmdebstrap"}, args...)
	if b.cfg.NetNS != "" {
		program = append([]string{"nsenter", "--net=" + b.cfg.NetNS}, program...)
	}
	cmd := exec.CommandContext(ctx, program[0], program[1:]...)
	cmd.Env = append(os.Environ(), "TMPDIR="+work, "LC_ALL=C.UTF-8")
	cmd.Stdout, cmd.Stderr = said, said
	// mmdebstrap removes what it made when it is asked to end.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("bootstrap %s: %w", p.codename, context.Cause(ctx))
		}
		return problem.New(problem.BaseBootstrapFailed, "bootstrapping %s from %s stopped; it said last:\n%s",
			p.codename, p.mirror, strings.Join(said.lines, "\n")).
			WithHint("check that this host can install packages (apt-get update), or name a base image that is at hand").WithCause(err)
	}
	return os.Rename(filepath.Join(work, "rootfs.tar"), target)
}

// sweep removes what earlier bootstraps left: half-made ones of a daemon that
// died, and root file systems that are not target.
func (b *Builder) sweep(ctx context.Context, target string) {
	for _, pattern := range []string{"bootstrap-*", "base-*.tar"} {
		old, _ := filepath.Glob(filepath.Join(b.cfg.CacheDir, pattern)) // the pattern is well formed
		for _, path := range old {
			if path == target {
				continue
			}
			if err := os.RemoveAll(path); err != nil {
				b.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "cannot remove old base", slog.String("path", path), slog.Any("error", err))
			}
		}
	}
}

// prepare writes mmdebstrap's inputs into work and returns its arguments.
// Credentials travel in files, and hooks remove them from the result.
func (p plan) prepare(work string, host *hostAPT) ([]string, error) {
	config := host.config
	files := map[string]string{"sources.list": p.list, "auth.conf": p.auth, "apt.conf": config}
	if len(host.ca) > 0 {
		files["ca.crt"] = string(host.ca)
		files["apt.conf"] = config + "Acquire::https::CAInfo \"" + filepath.Join(work, "ca.crt") + "\";\n"
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(work, name), []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	args := []string{
		"--mode=root", "--variant=minbase", "--format=tar", "--include=ca-certificates",
		"--aptopt=" + filepath.Join(work, "apt.conf"),
		`--setup-hook=mkdir -p "$1/etc/apt/auth.conf.d"; install -m 600 ` + filepath.Join(work, "auth.conf") +
			` "$1/etc/apt/auth.conf.d/build.conf"`,
		`--customize-hook=rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1/etc/apt/auth.conf.d/build.conf" "$1/etc/hostname" "$1/etc/resolv.conf"`,
	}
	// A mirror's own keys must be known to the base too.
	for i, key := range p.keys {
		path := filepath.Join(work, fmt.Sprintf("key%d.asc", i))
		if err := os.WriteFile(path, []byte(deb822Key(key)), 0o644); err != nil {
			return nil, err
		}
		args = append(args, "--keyring="+path,
			fmt.Sprintf(`--customize-hook=install -m 644 '%s' "$1/etc/apt/trusted.gpg.d/mirror%d.asc"`, path, i))
	}
	for _, keyring := range p.keyrings {
		if strings.ContainsAny(keyring, "'\n") {
			return nil, fmt.Errorf("keyring %q: %w", keyring, errdefs.ErrInvalidArgument)
		}
		args = append(args, fmt.Sprintf(`--customize-hook=test -e "$1"'%s' || install -D -m 644 '%s' "$1"'%s'`, keyring, keyring, keyring))
	}
	return append(args, p.codename, filepath.Join(work, "rootfs.tar"), filepath.Join(work, "sources.list")), nil
}

// deb822Key undoes deb822's way to write empty lines in a key.
func deb822Key(key string) string {
	lines := strings.Split(key, "\n")
	for i, line := range lines {
		if line == "." {
			lines[i] = ""
		}
	}
	return strings.Join(lines, "\n") + "\n"
}

// lineWriter keeps the last lines written to it and shows them.
type lineWriter struct {
	observe func([]string)
	lines   []string
	partial []byte
}

const keptLines = 20

func (w *lineWriter) Write(data []byte) (int, error) {
	w.partial = append(w.partial, data...)
	changed := false
	for {
		line, rest, found := bytes.Cut(w.partial, []byte("\n"))
		if !found {
			break
		}
		w.partial = rest
		if text := strings.TrimSpace(strings.ToValidUTF8(string(line), "\uFFFD")); text != "" {
			w.lines = append(w.lines, text)
			changed = true
		}
	}
	if extra := len(w.lines) - keptLines; extra > 0 {
		w.lines = slices.Delete(w.lines, 0, extra)
	}
	if changed {
		w.observe(slices.Clone(w.lines))
	}
	return len(data), nil
}
