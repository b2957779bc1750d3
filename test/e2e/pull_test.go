package e2e_test

import (
	"crypto/rand"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// gate is a registry in the node's network namespace. While it is shut, the
// content of images below "slow/" does not come.
type gate struct {
	host string
	mu   sync.Mutex
	open chan struct{}
}

func startRegistry(t *testing.T, n *Node, registry *testutil.ImageRegistry) *gate {
	t.Helper()
	target, err := url.Parse("http://" + registry.Host)
	if err != nil {
		t.Fatal(err)
	}
	var listener net.Listener
	n.Network.Do(t, func() { listener, err = net.Listen("tcp4", "127.0.0.1:0") })
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{host: listener.Addr().String(), open: make(chan struct{})}
	proxy := httputil.NewSingleHostReverseProxy(target)
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/slow/") && strings.Contains(r.URL.Path, "/blobs/") {
			g.mu.Lock()
			open := g.open
			g.mu.Unlock()
			select {
			case <-open:
			case <-r.Context().Done():
				return
			}
		}
		proxy.ServeHTTP(w, r)
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return g
}

// Images come from a registry with progress, are shown with who uses them, and
// go when nobody does. Who waits may leave: the work goes on or is stopped.
func TestImagesAndOperations(t *testing.T) {
	n := Start(t, usual, "")
	registry := testutil.Registry(t)
	gate := startRegistry(t, n, registry)
	reference := gate.host + "/team/tool:1"
	registry.Push("team/tool", "1", testutil.TestImage(t, testutil.ImageOptions{Name: reference}))
	slow := gate.host + "/slow/tool:1"
	registry.Push("slow/tool", "1", testutil.TestImage(t, testutil.ImageOptions{Name: slow, Files: map[string]string{"/etc/slow": "yes"}}))

	out := n.Must(t, "image", "pull", reference, "--no-wait", "-o", "json")
	var op listedOperation
	if err := json.Unmarshal([]byte(out), &op); err != nil || op.ID == "" {
		t.Fatalf("pull answers %v: %s", err, out)
	}
	watched := n.grpc(t, "grpcurl", "-plaintext", "-max-time", "60", "-H", "Authorization: Bearer "+n.token(t),
		"-d", `{"id":"`+op.ID+`"}`, "127.0.0.1:7480", "remotegpu.v1.OperationService/WatchOperation")
	for _, want := range []string{"OPERATION_STATE_SUCCEEDED", `"image.pull"`, "sha256:"} {
		if !strings.Contains(watched, want) {
			t.Errorf("the watched pull lacks %s:\n%s", want, watched)
		}
	}
	n.Must(t, "env", "create", "user", "--image", reference)
	usedBy := func() []string {
		var list struct {
			Images []struct {
				Name   string
				UsedBy []string
			}
		}
		n.call(t, "ImageService/ListImages", "{}", &list)
		for _, image := range list.Images {
			if image.Name == reference {
				return append([]string{}, image.UsedBy...)
			}
		}
		return nil
	}
	if got := usedBy(); len(got) != 1 || got[0] != n.Get(t, "user").ID {
		t.Errorf("used by %q", got)
	}
	n.showImage(t, reference)
	if _, errs, code := n.CLI(t, "image", "rm", reference); code != 4 || !strings.Contains(errs, "is in use by user") {
		t.Errorf("removing a used image: exit %d\n%s", code, errs)
	}
	// What lists print others take.
	n.Must(t, append([]string{"env", "rm", "--force", "--grace", "0s"}, strings.Fields(n.Must(t, "env", "ls", "--quiet"))...)...)
	if got := usedBy(); got == nil || len(got) != 0 {
		t.Errorf("used by %q after the delete", got)
	}
	n.Must(t, "image", "rm", reference)
	if usedBy() != nil {
		t.Error("the removed image is listed")
	}
	if _, _, code := n.CLI(t, "image", "rm", reference); code != 3 {
		t.Errorf("removing an absent image: exit %d", code)
	}
	if _, errs, code := n.CLI(t, "image", "get", reference); code != 3 || !strings.Contains(errs, "remotegpu image ls") {
		t.Errorf("getting an absent image: exit %d\n%s", code, errs)
	}
	if _, errs, code := n.CLI(t, "image", "pull", gate.host+"/team/absent:1"); code != 3 || !strings.Contains(errs, "Try: ") {
		t.Errorf("pulling an absent image: exit %d\n%s", code, errs)
	}
	interrupted(t, n, gate, slow)
}

// showImage looks at an image that the environment user was made from.
func (n *Node) showImage(t *testing.T, reference string) {
	t.Helper()
	out := n.Must(t, "image", "get", reference)
	for _, want := range []string{"Used by:", "user", "Entrypoint:", "/bin/testprog", "IMAGE_VARIABLE=from image", "Layer:", " would go with it"} {
		if !strings.Contains(out, want) {
			t.Errorf("image get lacks %q:\n%s", want, out)
		}
	}
	var answer struct {
		Image struct {
			Name, Digest string
			UsedBy       []string
			Details      struct {
				Config    struct{ Env map[string]string }
				Layers    []struct{ Digest string }
				Platforms []struct{ Present bool }
				Usage     *struct{ ContentBytes string }
			}
		}
	}
	n.call(t, "ImageService/GetImage", `{"reference":"`+reference+`"}`, &answer)
	digest, details := answer.Image.Digest, &answer.Image.Details
	if len(answer.Image.UsedBy) != 1 || details.Config.Env["IMAGE_VARIABLE"] != "from image" || len(details.Layers) != 1 ||
		len(details.Platforms) != 1 || !details.Platforms[0].Present || details.Usage != nil {
		t.Errorf("the image is %+v", answer.Image)
	}
	n.call(t, "ImageService/GetImage", `{"reference":"`+digest[:len("sha256:")+12]+`","usage":true}`, &answer)
	if answer.Image.Name != reference || details.Usage == nil || details.Usage.ContentBytes == "" {
		t.Errorf("by its digest the image is %+v", answer.Image)
	}
	names := strings.Fields(n.Must(t, "image", "ls", "-q"))
	if out := n.Must(t, append([]string{"image", "get", "-o", "json"}, names...)...); strings.Count(out, "\n") != len(names) || len(names) != 2 {
		t.Errorf("images %q: %s", names, out)
	}
}

// Pulls go on when containerd is killed while it is given what comes, those of
// creates too.
func TestContainerdKilledDuringPulls(t *testing.T) {
	n := Start(t, usual, "")
	registry := testutil.Registry(t)
	gate := startRegistry(t, n, registry)
	pulled, created := gate.host+"/half/pulled:1", gate.host+"/half/created:1"
	// Each has a file that does not get smaller, of which half comes.
	for name, repository := range map[string]string{pulled: "half/pulled", created: "half/created"} {
		content := make([]byte, 8<<20)
		if _, err := rand.Read(content); err != nil {
			t.Fatal(err)
		}
		registry.Push(repository, "1", testutil.TestImage(t, testutil.ImageOptions{Name: name, Files: map[string]string{"/srv/random": string(content)}}))
	}
	release := []func(){registry.Hold("half/pulled"), registry.Hold("half/created")}
	n.Must(t, "image", "pull", pulled, "--no-wait")
	n.Must(t, "env", "create", "one", "--image", created, "--no-wait")
	Eventually(t, "half of each to be written", func() bool { return strings.Count(n.Containerd.Ctr(t, "content", "active"), "MB") == 2 })
	n.Containerd.Kill(t)
	n.Containerd.Start(t)
	for _, release := range release {
		release()
	}
	for _, kind := range []string{"image.pull", "environment.create"} {
		var op listedOperation
		Eventually(t, kind+" to be done", func() bool {
			for _, found := range n.operations(t) {
				if found.Kind == kind {
					op = found
				}
			}
			return op.State != "OPERATION_STATE_QUEUED" && op.State != "OPERATION_STATE_RUNNING"
		})
		if op.State != "OPERATION_STATE_SUCCEEDED" {
			t.Errorf("%s", n.Must(t, "op", "get", op.ID))
		}
	}
	n.Must(t, "env", "rm", "--force", "--grace", "0s", "one")
}

// interrupted pulls what does not come, is interrupted, finds the operation
// at work and cancels it; then the same pull succeeds.
func interrupted(t *testing.T, n *Node, gate *gate, reference string) {
	t.Helper()
	cmd := n.command(t, testutil.Program("remotegpu"), "image", "pull", reference)
	var errs syncBuffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil { // nsenter becomes the program: the signal reaches it
		t.Fatal(err)
	}
	var op listedOperation
	Eventually(t, "the pull to be at work", func() bool {
		for _, found := range n.operations(t) {
			if found.Target == reference && found.State == "OPERATION_STATE_RUNNING" {
				op = found
			}
		}
		return op.ID != "" && errs.String() != "" // it shows progress: it waits
	})
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 || !strings.Contains(errs.String(), "interrupted; operation "+op.ID+" goes on") {
		t.Errorf("interrupted: exit %d\n%s", code, errs.String())
	}
	if out := n.Must(t, "op", "ls", "--state", "running"); !strings.Contains(out, op.ID) {
		t.Errorf("op ls: %s", out)
	}
	if out := n.Must(t, "__complete", "op", "cancel", ""); !strings.Contains(out, op.ID) {
		t.Errorf("completion of operations: %s", out)
	}
	if _, errs, code := n.CLI(t, "op", "watch", op.ID, "--timeout", "200ms"); code != 8 || !strings.Contains(errs, "still not done") {
		t.Errorf("op watch with a timeout: exit %d\n%s", code, errs)
	}
	n.Must(t, "op", "cancel", op.ID, "--wait", "60s")
	if out := n.Must(t, "op", "get", op.ID, "-o", "json"); !strings.Contains(out, "OPERATION_STATE_CANCELLED") {
		t.Errorf("op get: %s", out)
	}
	if _, _, code := n.CLI(t, "op", "watch", op.ID); code != 8 {
		t.Errorf("op watch of what was cancelled: exit %d, want 8", code)
	}
	close(gate.open)
	n.Must(t, "image", "pull", reference)
	n.Must(t, "image", "rm", reference)
}
