package runtime_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/oklog/ulid/v2"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/operation"
)

const (
	private = "registry.example/team/app:v1"
	secret  = "correct horse battery staple"
)

// asking is a host whose registry has a private image.
func asking(t *testing.T) *host {
	t.Helper()
	h := newHost(t)
	h.images.AddRemote(runtime.Image{Name: private, Digest: "sha256:2", Size: 7})
	h.images.Ask(private, runtime.Login{Username: "ann", Password: secret})
	return h
}

func pullPrivate() runtime.PullRequest {
	return runtime.PullRequest{RequestID: "r1", Reference: private, Login: &runtime.Login{Username: "ann", Password: secret}}
}

// noSecret fails the test when the password is anywhere below the state
// directory.
func noSecret(t *testing.T, h *host) {
	t.Helper()
	if err := filepath.WalkDir(h.dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err == nil && bytes.Contains(text, []byte(secret)) {
			t.Errorf("%s has the password", path)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

func credentialFiles(t *testing.T, h *host) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(h.dir, "credentials", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestLoginIsKeptForTheOperationAlone(t *testing.T) {
	t.Parallel()
	h := asking(t)
	d := start(t, h)
	var kept atomic.Bool
	h.faults.Hook(func(method string) {
		if method != "Images.Pull" {
			return
		}
		for _, path := range credentialFiles(t, h) {
			info, err := os.Stat(path)
			text, readErr := os.ReadFile(path)
			kept.Store(err == nil && readErr == nil && info.Mode() == 0o600 && bytes.Contains(text, []byte(secret)))
		}
	})
	op, err := d.Pull(t.Context(), pullPrivate())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(op.Args)+op.RequestHash, secret) {
		t.Errorf("the operation has the password: %+v", op)
	}
	if done := d.done(op); done.State != operation.Succeeded || done.Result["digest"] != "sha256:2" {
		t.Errorf("operation %+v", done)
	}
	if !kept.Load() {
		t.Error("the credentials were not kept for root alone while the pull was at work")
	}
	// The same request again, and another one with its id.
	if again, err := d.Pull(t.Context(), pullPrivate()); err != nil || again.ID != op.ID {
		t.Errorf("repeated: %+v, %v", again, err)
	}
	other := pullPrivate()
	other.Login = &runtime.Login{Username: "bob", Password: secret}
	_, err = d.Pull(t.Context(), other)
	wantProblem(t, "another user", err, problem.RequestIDReused, "request_id")
	// Wrong ones.
	wrong := runtime.PullRequest{Reference: private, Login: &runtime.Login{Username: "ann", Password: "wrong"}}
	if op, err = d.Pull(t.Context(), wrong); err != nil {
		t.Fatal(err)
	}
	if done := d.done(op); done.State != operation.Failed || done.Problem.Reason != string(problem.RegistryDenied) || done.Problem.Field != "reference" {
		t.Errorf("operation %+v, problem %+v", done, done.Problem)
	}
	if files := credentialFiles(t, h); len(files) > 0 {
		t.Errorf("credentials are left: %q", files)
	}
	noSecret(t, h)
	if text := fmt.Sprintf("%v %+v %#v", *wrong.Login, wrong.Login, *wrong.Login); strings.Contains(text, "wrong") {
		t.Errorf("a login prints as %s", text)
	}
}

func TestLoginSurvivesTheDaemon(t *testing.T) {
	t.Parallel()
	h := asking(t)
	d := start(t, h)
	pulling := make(chan struct{})
	var once sync.Once
	stop := make(chan struct{})
	h.faults.Hook(func(method string) {
		if method == "Images.Pull" {
			once.Do(func() { close(pulling); <-stop })
		}
	})
	op, err := d.Pull(t.Context(), pullPrivate())
	if err != nil {
		t.Fatal(err)
	}
	<-pulling
	time.AfterFunc(50*time.Millisecond, func() { close(stop) }) // when the daemon is stopping, or has not begun to
	d.stop()
	d = start(t, h)
	if done := d.done(op); done.State != operation.Succeeded {
		t.Errorf("operation %+v, problem %+v", done, done.Problem)
	}
	if files := credentialFiles(t, h); len(files) > 0 {
		t.Errorf("credentials are left: %q", files)
	}
}

func TestLostLoginIsSaid(t *testing.T) {
	t.Parallel()
	h := asking(t)
	h.images.Add(runtime.Image{Name: "team/mine", Digest: "sha256:3"})
	d := start(t, h)
	// The worker is kept busy by pulls that wait, so that the last one is not begun.
	held, release := make(chan struct{}), make(chan struct{})
	var waiting atomic.Int32
	h.faults.Hook(func(method string) {
		if method == "Images.Push" && waiting.Add(1) <= 3 {
			if waiting.Load() == 3 {
				close(held)
			}
			<-release
		}
	})
	for i := range 3 {
		h.images.Add(runtime.Image{Name: fmt.Sprintf("team/mine:%d", i), Digest: "sha256:3"})
		if _, err := d.Push(t.Context(), runtime.PushRequest{Reference: fmt.Sprintf("team/mine:%d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	<-held
	op, err := d.Push(t.Context(), runtime.PushRequest{Reference: "team/mine", Destination: private, Login: pullPrivate().Login})
	if err != nil {
		t.Fatal(err)
	}
	files := credentialFiles(t, h)
	if len(files) != 1 || filepath.Base(files[0]) != op.ID {
		t.Fatalf("credentials %q", files)
	}
	if err := os.WriteFile(files[0], []byte("{damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	close(release)
	if done := d.done(op); done.State != operation.Failed || done.Problem.Reason != string(problem.CredentialsLost) || done.Problem.Hint == "" {
		t.Errorf("operation %+v, problem %+v", done, done.Problem)
	}
	if files := credentialFiles(t, h); len(files) > 0 {
		t.Errorf("credentials are left: %q", files)
	}
}

// A daemon that died may leave credentials: those of operations that are done,
// of ones that were never written, and files that were not written to their
// end. What others put beside them stays.
func TestStaleLoginsGo(t *testing.T) {
	t.Parallel()
	h := asking(t)
	d := start(t, h)
	op, err := d.Pull(t.Context(), pullPrivate())
	if err != nil {
		t.Fatal(err)
	}
	d.done(op)
	dir := filepath.Join(h.dir, "credentials")
	young, old := ulid.Make().String(), ulid.Make().String()
	half := "." + old + ".1234"
	foreign := []string{"keep.txt", ".half.1234"}
	if err := os.MkdirAll(filepath.Join(dir, "lost+found", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range append([]string{op.ID, young, old, half}, foreign...) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	long := time.Now().Add(-time.Hour)
	for _, name := range append([]string{old, half}, foreign...) {
		if err := os.Chtimes(filepath.Join(dir, name), long, long); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"credentials " + half + " remove ours=true", "credentials .half.1234 none ours=false",
		"credentials " + op.ID + " remove ours=true", "credentials " + old + " remove ours=true",
		"credentials keep.txt none ours=false", "credentials lost+found none ours=false",
	}
	slices.Sort(want)
	for _, dryRun := range []bool{true, false} {
		if diff := cmp.Diff(want, said(d.reconcile(dryRun))); diff != "" {
			t.Errorf("dry run %t: %s", dryRun, diff)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, entry := range entries {
		left = append(left, entry.Name())
	}
	stays := append([]string{young, "lost+found"}, foreign...) // the operation of young may be about to be written
	slices.Sort(stays)
	if diff := cmp.Diff(stays, left); diff != "" {
		t.Error(diff)
	}
}
