package e2e_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

const registrySecret = "correct horse battery staple"

// Images go from a registry that asks for credentials to the node, to files and
// back, whatever happens to the daemon in between, and nobody can read the
// password.
func TestImagesAcrossTheDaemonsEnd(t *testing.T) {
	n := Start(t, usual, "")
	registry := testutil.Registry(t)
	registry.AskBasic("ann", registrySecret)
	gate := startRegistry(t, n, registry)
	slow := gate.host + "/slow/tool:1"
	registry.Push("slow/tool", "1", testutil.TestImage(t, testutil.ImageOptions{Name: slow, Upper: []string{"one", "two"}}))

	if _, errs, code := n.CLI(t, "image", "pull", slow); code != 7 || !strings.Contains(errs, "user name and password") {
		t.Errorf("pull without credentials: exit %d\n%s", code, errs)
	}
	id := n.pullWithPassword(t, slow)
	Eventually(t, "the pull to be at work", func() bool { return n.operation(t, id).State == "OPERATION_STATE_RUNNING" })
	credentials := filepath.Join(n.Dir, "state", "credentials", id)
	if info, err := os.Stat(credentials); err != nil || info.Mode() != 0o600 {
		t.Errorf("credentials: %v, %v", info, err)
	}
	n.Stop(t, syscall.SIGKILL)
	n.Run(t)
	if state := n.operation(t, id).State; state != "OPERATION_STATE_RUNNING" && state != "OPERATION_STATE_QUEUED" {
		t.Errorf("after the daemon was killed the pull is %s", state)
	}
	n.noPasswordBut(t, credentials)
	close(gate.open)
	n.Must(t, "op", "watch", id)
	if out := n.Must(t, "op", "get", id, "-o", "json"); strings.Count(out, "LAYER_STATE_UNPACKED") != 2 || strings.Contains(out, registrySecret) {
		t.Errorf("the operation: %s", out)
	}
	if _, err := os.Stat(credentials); !os.IsNotExist(err) {
		t.Errorf("the credentials are still there: %v", err)
	}
	n.noPasswordBut(t, "")

	// With the node's own credentials.
	docker := `{"auths": {"` + gate.host + `": {"username": "ann", "password": "` + registrySecret + `"}}}`
	if err := os.WriteFile(filepath.Join(n.Dir, "docker.json"), []byte(docker), 0o600); err != nil {
		t.Fatal(err)
	}
	n.Must(t, "image", "pull", slow)
	n.Must(t, "image", "push", slow, "--as", gate.host+"/team/copy:2")
	if registry.Tagged("team/copy", "2") == "" {
		t.Error("the registry does not have what was pushed")
	}
	n.archives(t, slow)
	n.importWhileKilled(t)
	n.imageCare(t, slow)
}

// pullWithPassword starts a pull and returns its operation.
func (n *Node) pullWithPassword(t *testing.T, reference string) string {
	t.Helper()
	cmd := n.command(t, testutil.Program("remotegpu"), "image", "pull", reference, "--no-wait", "-u", "ann", "--password-stdin")
	cmd.Stdin = strings.NewReader(registrySecret + "\n")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("pull: %v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}

func (n *Node) operation(t *testing.T, id string) listedOperation {
	t.Helper()
	var op listedOperation
	if err := json.Unmarshal([]byte(n.Must(t, "op", "get", id, "-o", "json")), &op); err != nil {
		t.Fatal(err)
	}
	return op
}

// noPasswordBut fails the test when a file of the node has the password, except
// one. The docker configuration is not the node's.
func (n *Node) noPasswordBut(t *testing.T, but string) {
	t.Helper()
	for _, dir := range []string{"state", "remotegpud.log"} {
		if err := filepath.WalkDir(filepath.Join(n.Dir, dir), func(path string, entry os.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() || path == but {
				return err
			}
			text, err := os.ReadFile(path)
			if bytes.Contains(text, []byte(registrySecret)) {
				t.Errorf("%s has the password", path)
			}
			return err
		}); err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
	}
}

// archives exports and imports, under another name too, through curl's eyes.
func (n *Node) archives(t *testing.T, reference string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	n.Must(t, "image", "export", reference, n.Image, "-f", file)
	n.Must(t, "image", "rm", reference)
	if out := n.Must(t, "image", "import", file); !strings.Contains(out, reference) || !strings.Contains(out, "docker.io/remotegpu/test:latest") {
		t.Errorf("imported: %s", out)
	}
	if _, errs, code := n.CLI(t, "image", "import", file, "-t", "team/one"); code != 2 || !strings.Contains(errs, "2 images") {
		t.Errorf("import of two by one name: exit %d\n%s", code, errs)
	}
	var empty bytes.Buffer // what is read from it ends at once
	archive := tar.NewWriter(&empty)
	if err := errors.Join(archive.WriteHeader(&tar.Header{Name: "oci-layout", Mode: 0o644}), archive.Close(), os.WriteFile(file, empty.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := n.CLI(t, "image", "import", file); code != 2 || !strings.Contains(errs, "is not one of images") || !strings.Contains(errs, "Try: ") {
		t.Errorf("import of nothing: exit %d\n%s", code, errs)
	}
	n.Must(t, "image", "tag", reference, "team/tagged:3")
	if out := n.Must(t, "image", "ls"); !strings.Contains(out, "docker.io/team/tagged:3") {
		t.Errorf("image ls: %s", out)
	}
	n.Must(t, "env", "create", "imported", "--image", "team/tagged:3")
	if out := n.Must(t, "env", "exec", "imported", "--", "cat", "/upper/two"); out != "two" {
		t.Errorf("inside: %q", out)
	}
}

// importWhileKilled kills the daemon while an archive is on its way: nothing of
// it is left when the next one has looked around.
func (n *Node) importWhileKilled(t *testing.T) {
	t.Helper()
	blobs := n.Containerd.Ctr(t, "content", "ls", "-q")
	archive := testutil.TestImage(t, testutil.ImageOptions{Name: "docker.io/team/half:1", Files: map[string]string{"/etc/half": "half"}}).Tar(t)
	reader, writer := io.Pipe()
	cmd := n.command(t, testutil.Program("remotegpu"), "image", "import", "-")
	cmd.Stdin = reader
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = writer.Write(archive[:len(archive)*9/10])
	}()
	Eventually(t, "the import to hold something", func() bool { return n.Containerd.Ctr(t, "leases", "ls", "-q") != "" })
	n.Stop(t, syscall.SIGKILL)
	_ = writer.Close()
	if err := cmd.Wait(); err == nil {
		t.Error("an import that the daemon did not survive went well")
	}
	n.Run(t)
	Eventually(t, "nothing to be left of the import", func() bool {
		return n.Containerd.Ctr(t, "leases", "ls", "-q") == "" && n.Containerd.Ctr(t, "content", "ls", "-q") == blobs &&
			!strings.Contains(n.Containerd.Ctr(t, "content", "active"), "tar-")
	})
}

// imageCare pins, prunes and measures.
func (n *Node) imageCare(t *testing.T, reference string) {
	t.Helper()
	n.Must(t, "image", "pin", reference)
	if _, errs, code := n.CLI(t, "image", "rm", "--force", reference); code != 4 || !strings.Contains(errs, "is pinned") {
		t.Errorf("removing what is pinned: exit %d\n%s", code, errs)
	}
	if out := n.Must(t, "image", "df"); !strings.Contains(out, reference) || !strings.Contains(out, "can be pruned") {
		t.Errorf("df: %s", out)
	}
	if out := n.Must(t, "image", "prune", "--dry-run"); !strings.HasPrefix(out, "docker.io/remotegpu/test:latest\n") || strings.Contains(out, reference) {
		t.Errorf("prune --dry-run: %s", out)
	}
	n.Must(t, "image", "unpin", reference)
	// Both names are of what an environment was made from.
	out := n.Must(t, "image", "prune")
	if strings.Contains(out, reference) || !strings.Contains(out, "docker.io/remotegpu/test:latest") || strings.Contains(out, "tagged") {
		t.Errorf("prune: %s", out)
	}
	if _, errs, code := n.CLI(t, "image", "rm", "team/tagged:3"); code != 4 || !strings.Contains(errs, "in use by imported") {
		t.Errorf("removing what is in use: exit %d\n%s", code, errs)
	}
	n.Must(t, "image", "rm", "--force", "team/tagged:3")
	n.Must(t, "image", "rm", "--force", reference)
	n.Must(t, "env", "restart", "imported")
	if out := n.Must(t, "env", "exec", "imported", "--", "cat", "/upper/two"); out != "two" {
		t.Errorf("inside, without its image: %q", out)
	}
	n.Must(t, "env", "rm", "--force", "imported")
	if out := n.Must(t, "image", "ls"); strings.Count(out, "\n") != 1 {
		t.Errorf("images are left: %s", out)
	}
}
