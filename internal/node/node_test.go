package node_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/config"
	"github.com/remotegpu/remotegpu/internal/node"
	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
)

func testConfig(t *testing.T) config.Config {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "remotegpud.toml")
	text := "version = 1\n[node]\nname = \"node1\"\nstate_dir = \"" + dir + "/state\"\nrun_dir = \"" + dir + "/run\"\n" +
		"[containerd]\naddress = \"" + dir + "/none.sock\"\ncgroup = \"/" + filepath.Base(filepath.Dir(dir)) + "\"\n[network]\nrange = \"10.99.0.0/16\"\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path, false)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// The node keeps its id, its token and its range, and one daemon at a time
// works in a state directory.
func TestNodeKeepsItsIdentity(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	cfg, log := testConfig(t), slog.New(slog.DiscardHandler)
	first, err := node.New(t.Context(), cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	info := first.Info(t.Context())
	if len(info.ID) != 26 || info.AddressRange != "10.99.0.0/16" {
		t.Errorf("info: %+v", info)
	}
	if _, err := node.New(t.Context(), cfg, log); err == nil || problem.Of(err).Reason != problem.StateDirLocked || !strings.Contains(err.Error(), "another remotegpud") {
		t.Errorf("a second daemon in the same directory: %v", err)
	}
	token, err := os.ReadFile(filepath.Join(cfg.Node.StateDir, "token"))
	if err != nil || len(token) < 32 {
		t.Errorf("token: %q %v", token, err)
	}
	backup := filepath.Join(t.TempDir(), "backup.db")
	if err := node.Backup(t.Context(), cfg, backup, log); err != nil {
		t.Error(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := node.New(t.Context(), cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := second.Close(); err != nil {
			t.Error(err)
		}
	})
	if again := second.Info(t.Context()); again.ID != info.ID {
		t.Errorf("the id was %s and is %s", info.ID, again.ID)
	}
	if after, err := os.ReadFile(filepath.Join(cfg.Node.StateDir, "token")); err != nil || string(after) != string(token) {
		t.Errorf("the token changed: %v", err)
	}
}

// What only one node of a host can have is refused to another one, by the setting
// that it has of it.
func TestNodesThatCollide(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	cfg, log := testConfig(t), slog.New(slog.DiscardHandler)
	first, err := node.New(t.Context(), cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	for field, collide := range map[string]func(*config.Config){
		"node.run_dir":         func(other *config.Config) { other.Node.RunDir = cfg.Node.RunDir },
		"containerd.namespace": func(other *config.Config) { other.Containerd.Address = cfg.Containerd.Address },
		"containerd.cgroup":    func(other *config.Config) { other.Containerd.Cgroup = cfg.Containerd.Cgroup },
		"":                     func(*config.Config) {}, // the network that both are in
	} {
		other := testConfig(t)
		other.Containerd.Cgroup += "b"
		collide(&other)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond) // its patience
		_, err := node.New(ctx, other, log)
		cancel()
		if p := problem.Of(err); err == nil || p.Reason != problem.ConfigInvalid || p.Field != field || p.Hint == "" || !strings.Contains(p.Message, cfg.Node.StateDir) {
			t.Errorf("with the same %q: %+v", field, p)
		}
	}
	if err := node.CleanUp(t.Context(), cfg, true, log); err == nil {
		t.Error("the host is cleaned up beside the daemon")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	other := testConfig(t)
	second, err := node.New(t.Context(), other, log) // the first has left nothing that is in use
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	for _, cfg := range []config.Config{other, cfg} {
		if err := node.CleanUp(t.Context(), cfg, false, log); err != nil {
			t.Error(err)
		}
	}
}

// A containerd that takes calls and answers none keeps nobody from having names,
// and rules from being mended.
func TestContainerdHangsAtTheStart(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables)
	if !testutil.Isolated(t) {
		return
	}
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "xtables.lock"))
	cfg := testConfig(t)
	cfg.Gateway.Listen, cfg.API.Listen, cfg.Network.Poll = "", "", 1
	cfg.DNS.Listen, cfg.DNS.Allow = []string{"127.0.0.1"}, []string{"127.0.0.0/8"}
	mute, err := net.Listen("unix", cfg.Containerd.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	go func() {
		for {
			conn, err := mute.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			go func() {
				conn.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0}) // SETTINGS: HTTP/2 is spoken here (RFC 9113 section 6.5)
				io.Copy(io.Discard, conn)
			}()
		}
	}()
	n, err := node.New(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-done, n.Close()); err != nil {
			t.Error(err)
		}
	})
	within := func(what string, holds func() bool) {
		t.Helper()
		for deadline := time.Now().Add(40 * time.Second); !holds(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("waited in vain for %s", what)
			}
		}
	}
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, "127.0.0.1:53")
	}}
	within("names", func() bool {
		found, err := resolver.LookupNS(ctx, "gpu.internal.")
		return err == nil && len(found) == 1
	})
	rules := func() bool { return strings.Contains(testutil.Sh(t, "iptables -S FORWARD"), "-j RGPU-FWD") }
	within("rules", rules)
	testutil.Sh(t, "iptables -F FORWARD")
	within("rules to be mended", rules)
}

// What environments may reach is refused before the daemon starts with it.
func TestCheckConfig(t *testing.T) {
	cfg := testConfig(t)
	cfg.Network.Allow = []string{"192.168.7.20:5000/tcp", "10.20.0.0/16"}
	if err := node.CheckConfig(cfg); err != nil {
		t.Error(err)
	}
	cfg.Network.Allow = append(cfg.Network.Allow, "mirror.example:80")
	if p := problem.Of(node.CheckConfig(cfg)); p.Reason != problem.ConfigInvalid || p.Field != "network.allow" || p.Hint == "" || !strings.Contains(p.Message, "mirror.example") {
		t.Errorf("%+v", p)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	unused := testConfig(t)
	unused.API.TLSCert, unused.API.TLSKey = file, file // at loopback there is no TLS
	if err := node.CheckConfig(unused); err != nil {
		t.Error(err)
	}
	for says, change := range map[string]func(*config.Config){
		"network.allow":           func(c *config.Config) { c.Network.Allow = []string{"[fd12::]/64"} },
		"gateway.public_url":      func(c *config.Config) { c.Gateway.PublicURL = "gpu1.example.com" },
		"gateway.frame_ancestors": func(c *config.Config) { c.Gateway.FrameAncestors = []string{"portal.example.com"} },
		"api.tls_cert":            func(c *config.Config) { c.API.Listen, c.API.TLSCert, c.API.TLSKey = "192.0.2.1:7480", file, file },
		"gateway.tls_cert":        func(c *config.Config) { c.Gateway.TLSCert, c.Gateway.TLSKey = file+".not", file },
	} {
		cfg := testConfig(t)
		cfg.Gateway.Listen = "127.0.0.1:0"
		change(&cfg)
		_, started := node.New(t.Context(), cfg, slog.New(slog.DiscardHandler))
		for _, err := range []error{node.CheckConfig(cfg), started} { // the check refuses what the daemon would
			if p := problem.Of(err); p == nil || p.Reason != problem.ConfigInvalid || !strings.Contains(err.Error(), says) {
				t.Errorf("%s: %v", says, err)
			}
		}
	}
}
