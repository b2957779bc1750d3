package vm_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// suite is a package whose tests run inside the machine too.
type suite struct {
	dir string // below the repository
	run string // pattern of the tests; "" for all
}

// name is that of the compiled tests.
func (s suite) name() string { return path.Base(s.dir) + ".test" }

func (m *Machine) payload() string { return filepath.Join(m.dir, "payload.ext4") }

// writePayload writes the machine's second disk, which it mounts on /payload:
// keys for this run, the programs, the image that tests run, and compiled
// tests in a tree like the repository's.
func (m *Machine) writePayload(tb testing.TB) *ssh.ClientConfig {
	tb.Helper()
	root := filepath.Join(m.dir, "payload")
	login := writeKeys(tb, filepath.Join(root, "ssh"))
	for _, program := range []string{"remotegpud", "remotegpu", "remotegpu-logwriter"} {
		place(tb, testutil.Program(program), filepath.Join(root, "repository", "bin", program))
	}
	for _, tool := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		place(tb, testutil.Tool(tool), filepath.Join(root, "repository", ".tools", "bin", tool))
	}
	place(tb, testutil.TestProgram(tb), filepath.Join(root, "testprog"))
	image := testutil.TestImage(tb, testutil.ImageOptions{Name: "docker.io/remotegpu/test:latest"})
	if err := os.WriteFile(filepath.Join(root, "image.tar"), image.Tar(tb), 0o600); err != nil {
		tb.Fatal(err)
	}
	build := []string{"test", "-c", "-ldflags=-s -w", "-o", filepath.Join(root, "tests") + "/"}
	for _, s := range suites {
		build = append(build, "./"+s.dir)
		source, target := filepath.Join(testutil.Repository(), s.dir, "testdata"), filepath.Join(root, "repository", s.dir)
		if err := os.MkdirAll(target, 0o755); err != nil {
			tb.Fatal(err)
		}
		if _, err := os.Stat(source); err == nil {
			run(tb, "cp", "-r", source, target)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "tests"), 0o755); err != nil {
		tb.Fatal(err)
	}
	run(tb, "go", build...)
	// A disk without room is read-only: the files and a tenth for what
	// describes them.
	var size int64
	err := filepath.WalkDir(root, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			size += info.Size() + 4096
		}
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	run(tb, "mke2fs", "-q", "-t", "ext4", "-L", "payload", "-O", "^has_journal", "-d", root, m.payload(), fmt.Sprintf("%dK", size/1024*11/10+16<<10))
	if err := os.RemoveAll(root); err != nil {
		tb.Fatal(err)
	}
	return login
}

// writeKeys makes keys of the machine and of who logs in, for this run alone.
func writeKeys(tb testing.TB, dir string) *ssh.ClientConfig {
	tb.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		tb.Fatal(err)
	}
	generate := func() (ed25519.PrivateKey, ssh.Signer) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			tb.Fatal(err)
		}
		signer, err := ssh.NewSignerFromKey(key)
		if err != nil {
			tb.Fatal(err)
		}
		return key, signer
	}
	hostKey, host := generate()
	_, user := generate()
	block, err := ssh.MarshalPrivateKey(hostKey, "")
	if err != nil {
		tb.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"host_key": pem.EncodeToMemory(block), "authorized_keys": ssh.MarshalAuthorizedKey(user.PublicKey()),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	return &ssh.ClientConfig{
		User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(user)}, HostKeyCallback: ssh.FixedHostKey(host.PublicKey()),
	}
}

// place puts a program where it is looked for.
func place(tb testing.TB, from, to string) {
	tb.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o755); err != nil {
		tb.Fatal(err)
	}
}

// runSuite runs the compiled tests of a package in the machine.
func (m *Machine) runSuite(t *testing.T, s suite) {
	t.Helper()
	// Compiled tests look for the repository where it was; a boot empties /tmp.
	repository := testutil.Repository()
	m.Sh(t, "mkdir -p "+filepath.Dir(repository)+"; ln -sfn /payload/repository "+repository)
	session, err := m.client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	command := fmt.Sprintf("cd %s && REMOTEGPU_TEST=root,iptables,containerd,containerd2,programs,diskquota REMOTEGPU_TEST_PROGRAM=/payload/testprog"+
		" /payload/tests/%s -test.v -test.failfast -test.timeout=30m -test.run='%s'",
		filepath.Join(repository, s.dir), s.name(), s.run)
	out, err := session.CombinedOutput(command)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	passed := strings.Count(string(out), "\n--- PASS")
	if passed == 0 || strings.Contains(string(out), "--- SKIP") {
		t.Errorf("not all tests ran:\n%s", out)
	}
	t.Logf("%s: %d tests passed", s.dir, passed)
}
