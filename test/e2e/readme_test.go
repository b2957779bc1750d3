package e2e_test

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
	"github.com/remotegpu/remotegpu/test/browser"
)

// shellBlocks are the commands of the README, block by block.
func shellBlocks(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(testutil.Repository(), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for _, match := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		blocks = append(blocks, match[1])
	}
	return blocks
}

// The README is run, command by command, from "make up" to "make down", and in
// between somebody works on the desktop that it promises (proof 1). The node
// runs in a network namespace and in directories of its own.
func TestReadme(t *testing.T) {
	testutil.Require(t, testutil.Root, testutil.IPTables, testutil.Containerd, testutil.BuildKit, testutil.Browser, testutil.Programs)
	blocks := shellBlocks(t)
	if len(blocks) < 5 || strings.TrimSpace(blocks[0]) != "make up" || strings.TrimSpace(blocks[len(blocks)-1]) != "make down" {
		t.Fatalf("the README's commands do not begin with make up and end with make down: %q", blocks)
	}
	dir, err := os.MkdirTemp("", "rgup") //nolint:usetesting // short: sockets lie below
	if err != nil {
		t.Fatal(err)
	}
	const namespace = "rg-readme"
	command := func(script string) (*exec.Cmd, *bytes.Buffer) {
		// The commands name the usual places; this node has its own.
		script = strings.ReplaceAll(script, "/run/remotegpu/", dir+"/run/")
		var out bytes.Buffer
		cmd := exec.Command("bash", "-euo", "pipefail", "-c", script)
		cmd.Dir = testutil.Repository()
		cmd.Env = append(os.Environ(), "NETNS="+namespace, "REMOTEGPU_STATE_DIR="+dir+"/state", "REMOTEGPU_RUN_DIR="+dir+"/run",
			"REMOTEGPU_ADDR=unix://"+dir+"/run/node.sock", "REMOTEGPU_PRIVATE_CONTAINERD=1", "SSH_AUTHORIZED_KEYS=ssh-ed25519 AAAA nobody", "MAKEFLAGS=", "MAKELEVEL=")
		cmd.Stdout, cmd.Stderr = &out, &out
		return cmd, &out
	}
	run := func(script string, limit time.Duration) string {
		t.Helper()
		cmd, out := command(script)
		timer := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s\n%v\n%s", script, err, tailOf(out.String(), 6000))
		}
		return out.String()
	}
	down := false
	t.Cleanup(func() {
		if !down {
			logs, _ := filepath.Glob(dir + "/state/logs/*.log")
			for _, log := range logs {
				text, _ := os.ReadFile(log)
				t.Logf("%s:\n%s", filepath.Base(log), tailOf(string(text), 3000))
			}
			run("make down FORCE=1 PURGE=1", 2*time.Minute)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})

	out := run(blocks[0], 15*time.Minute)
	url := regexp.MustCompile(`https://\S+#token=\S+`).FindString(out)
	if url == "" || !regexp.MustCompile(`ssh -p 22\d{3} gpu@`).MatchString(out) ||
		!strings.Contains(out, "nsenter --net=/run/netns/"+namespace+" ssh") || !strings.Contains(out, "REMOTEGPU_RUN_DIR="+dir+"/run make down") {
		t.Fatalf("make up prints no address:\n%s", tailOf(out, 3000))
	}
	t.Log("make up:", strings.Join(steps(out), " | "))
	useDesktop(t, namespace, url)
	if proof := run("bin/remotegpu env exec --stdin=false demo -- cat /home/gpu/proof", time.Minute); strings.TrimSpace(proof) != "typed in demo by gpu" {
		t.Errorf("the command that was typed in the browser wrote %q", proof)
	}
	pauseDesktop(t, namespace, url, dir+"/state/programs/remotegpud.log", command)
	t.Run("health of the desktop", func(t *testing.T) { t.Log(run(desktopHealth, 5*time.Minute)) })
	t.Run("what the image gives its user", func(t *testing.T) { t.Log(run(imageUse, 5*time.Minute)) })
	t.Run("packages in a snapshot", func(t *testing.T) { t.Log(run(packageInSnapshot, 5*time.Minute)) })
	before := time.Now()
	if again := run(blocks[0], 5*time.Minute); strings.Contains(again, "starting remotegpud") || strings.Contains(again, "building docker.io") {
		t.Errorf("a second make up starts over:\n%s", again)
	}
	t.Logf("a second make up takes %v", time.Since(before).Round(time.Millisecond))
	for _, block := range blocks[1 : len(blocks)-1] {
		t.Logf("%s%s", block, tailOf(run(block, 5*time.Minute), 400))
	}
	if err := os.Remove(filepath.Join(testutil.Repository(), "demo.png")); err != nil {
		t.Errorf("the screenshot: %v", err)
	}
	run(blocks[len(blocks)-1]+"\nmake down PURGE=1", 5*time.Minute)
	down = true
	if again := run(blocks[len(blocks)-1], time.Minute); !strings.Contains(again, "nothing") || strings.Contains(again, "done") {
		t.Errorf("a make down with nothing to undo says:\n%s", again)
	}
	if left, _ := filepath.Glob(dir + "/*"); len(left) > 0 {
		t.Errorf("make down leaves %v", left)
	}
	if _, err := os.Stat("/run/netns/" + namespace); err == nil {
		t.Error("make down leaves the network namespace")
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("make down leaves mounts: %v\n%s", err, mounts)
	}
	if out, err := exec.Command("pgrep", "-af", dir).CombinedOutput(); err == nil && len(out) > 0 {
		t.Errorf("make down leaves processes:\n%s", out)
	}
}

// becomes waits in a script until the health of demo is what it is called with.
const becomes = `
becomes() {
	for _ in $(seq 300); do
		if bin/remotegpu env get demo -o json | grep -q '"health": *"HEALTH_'"$1"'"'; then echo "demo is $1"; return; fi
		sleep 0.2
	done
	bin/remotegpu env get demo; echo "demo does not become $1" >&2; return 1
}
`

// desktopHealth checks a desktop that has drawn, that is taken away, and that
// is there again.
const desktopHealth = becomes + `
bin/remotegpu env update demo --health-desktop --health-interval 500ms --health-timeout 2s --health-retries 1
becomes HEALTHY
bin/remotegpu env exec --stdin=false -u root demo -- s6-svc -d /run/service/xvnc
becomes UNHEALTHY
bin/remotegpu env exec --stdin=false -u root demo -- s6-svc -u /run/service/xvnc
becomes HEALTHY
bin/remotegpu env update demo --no-health
`

// imageUse looks at what a person finds in the image: a volume to write to,
// variables in a login by SSH, and no entry in the menu that leads nowhere.
const imageUse = `
bin/remotegpu env create used --image remotegpu/desktop-base -v used:/home/gpu/deep/work -e 'FOO=a "b"  c' -e SSH_PASSWORD=secret
as() { bin/remotegpu env exec --stdin=false -u gpu used -- sh -euc "$1"; }
for _ in $(seq 100); do as 'test -e /run/service/sshd/supervise' && break; sleep 0.2; done
as 'touch ~/deep/work/file ~/deep/other'
as 'mkdir -p -m 700 ~/.ssh; ssh-keygen -q -t ed25519 -N "" -f ~/.ssh/id_ed25519; cp ~/.ssh/id_ed25519.pub ~/.ssh/authorized_keys'
login() { as "ssh -o StrictHostKeyChecking=no -o LogLevel=ERROR gpu@127.0.0.1 '$1'"; }
for _ in $(seq 100); do login true && break; sleep 0.2; done
test "$(login 'echo "$FOO $REMOTEGPU_NAME"')" = 'a "b"  c used'
test "$(login 'bash -lc "echo \$FOO \$PATH"')" = "a \"b\" c $(as 'echo $PATH')"
if login env | grep -E 'SSH_PASSWORD|SSH_AUTHORIZED'; then echo "a login finds secrets" >&2; exit 1; fi
as 'command -v git xdg-open; fc-list :lang=ja | grep -q .; test -e /usr/share/bash-completion/bash_completion'
bin/remotegpu env rm --force used
bin/remotegpu volume rm used
`

// packageInSnapshot installs a package, and looks for it in an environment that
// is made from a snapshot.
const packageInSnapshot = `
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir/p/DEBIAN" "$dir/p/usr/share/remotegpu-test"
printf '%s\n' 'Package: remotegpu-test' 'Version: 1.2' 'Architecture: all' 'Maintainer: nobody <nobody@example.com>' \
	'Description: is installed by a test' > "$dir/p/DEBIAN/control"
echo installed > "$dir/p/usr/share/remotegpu-test/file"
dpkg-deb --root-owner-group --build "$dir/p" "$dir/test.deb"
bin/remotegpu env cp "$dir/test.deb" demo:/tmp/test.deb
bin/remotegpu env exec --stdin=false -u root demo -- dpkg -i /tmp/test.deb
bin/remotegpu env snapshot create demo --name packages
bin/remotegpu env exec --stdin=false -u root demo -- dpkg --purge remotegpu-test
bin/remotegpu env create kept --from-snapshot demo/packages
test "$(bin/remotegpu env exec --stdin=false kept -- dpkg-query -f '${Status} ${Version}' -W remotegpu-test)" = "install ok installed 1.2"
test "$(bin/remotegpu env exec --stdin=false kept -- cat /usr/share/remotegpu-test/file)" = installed
bin/remotegpu env rm --force kept
bin/remotegpu env snapshot rm demo/packages
`

// useDesktop opens the address in Chromium, looks at the desktop, opens a
// terminal and types a command there.
func useDesktop(t *testing.T, namespace, url string) {
	t.Helper()
	picture := filepath.Join(t.TempDir(), "desktop.png")
	if dir := os.Getenv("TEST_ARTIFACTS"); dir != "" {
		picture = filepath.Join(dir, "desktop.png")
	}
	result := browser.Drive(t, browser.Options{Prefix: []string{"nsenter", "--net=/run/netns/" + namespace}, Timeout: 5 * time.Minute},
		browser.Open(url), browser.Connected(), browser.Colours(50),
		browser.Press("Alt+F2"), browser.Wait(3*time.Second), browser.Type("xfce4-terminal"), browser.Wait(time.Second), browser.Press("Enter"),
		browser.Wait(5*time.Second),
		browser.Type("echo typed in $(hostname) by $(id -un) > proof.new && mv proof.new proof"), browser.Press("Enter"), browser.Wait(2*time.Second),
		browser.Screenshot(picture))
	colours := result.Steps[2].Canvas.Colours
	t.Logf("the desktop shows %d colours", colours)
	if colours <= 50 {
		t.Errorf("the desktop has not drawn: %d colours", colours)
	}
}

// pauseScript pauses demo once somebody has fitted its desktop to a window, and
// resumes it when the browser has come again in vain.
const pauseScript = `
until_true() { for _ in $(seq 300); do ! eval "$1" || return 0; sleep 0.2; done; echo "not within a minute: $1" >&2; return 1; }
refused() { grep "desktop session refused" "$log" | grep -c "the environment is paused" || true; }
before=$(refused)
until_true 'bin/remotegpu desktop get demo | grep -q "Screen: *1280x"'
bin/remotegpu env pause demo
until_true '[ "$(refused)" -gt "$before" ]'
bin/remotegpu env resume demo
`

// pauseDesktop has demo paused under the eyes of somebody, who is told, and is
// back by itself when it goes on.
func pauseDesktop(t *testing.T, namespace, url, log string, command func(string) (*exec.Cmd, *bytes.Buffer)) {
	t.Helper()
	cmd, out := command("log=" + log + pauseScript)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill() // it has ended unless the browser did not do its part
	result := browser.Drive(t, browser.Options{Prefix: []string{"nsenter", "--net=/run/netns/" + namespace}},
		browser.Open(url), browser.Connected(), browser.Click("#fit"), browser.State("stopped"), browser.State("connected"), browser.Colours(50))
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if text := result.Steps[3].Text; !strings.Contains(text, "This desktop is paused") {
		t.Errorf("who looks at a desktop that is paused reads %q", text)
	}
}

// steps are the headings that make up prints.
func steps(out string) []string {
	var found []string
	for scanner := bufio.NewScanner(strings.NewReader(out)); scanner.Scan(); {
		if _, step, ok := strings.Cut(scanner.Text(), "==>\x1b[0m "); ok {
			found = append(found, step)
		}
	}
	return found
}

func tailOf(text string, n int) string { return text[max(0, len(text)-n):] }
