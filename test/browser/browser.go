// Package browser drives a headless Chromium from tests: it runs drive.mjs
// with node, whose only dependency is playwright-core (fetch.sh in this
// directory). A test that uses it requires testutil.Browser.
package browser

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// Options say where the browser runs and how large its window is.
type Options struct {
	// Prefix is put before the command, for example
	// {"nsenter", "--net=/run/netns/name", "--"}.
	Prefix []string
	// Width and Height are the window's, in pixels. 0: 1280 and 800.
	Width, Height int
	// Touch gives it a touch screen.
	Touch bool
	// Timeout bounds all actions together. 0: 3 minutes.
	Timeout time.Duration
}

// Action is one thing to do; the functions below make them.
type Action struct {
	Do       string `json:"do"`
	URL      string `json:"url,omitempty"`
	Text     string `json:"text,omitempty"`
	Selector string `json:"selector,omitempty"`
	Path     string `json:"path,omitempty"`
	Count    int    `json:"count,omitempty"`
	X        int    `json:"x,omitempty"`
	Y        int    `json:"y,omitempty"`
	Timeout  int64  `json:"timeout"` // ms
}

const patience = int64(60_000) // ms that one action may take

// Open opens an address. The step tells its Status.
func Open(url string) Action { return Action{Do: "open", URL: url, Timeout: patience} }

// Connected waits until the desktop page has its connection.
func Connected() Action { return Action{Do: "connected", Timeout: patience} }

// State waits until the desktop page is in a state: "busy", "connected" or
// "stopped". The step tells the Text of its notice.
func State(state string) Action { return Action{Do: "state", Text: state, Timeout: patience} }

// Colours waits until the desktop shows more than so many colours. The step
// tells the Canvas.
func Colours(more int) Action { return Action{Do: "colours", Count: more, Timeout: patience} }

// Canvas tells the Canvas as it is.
func Canvas() Action { return Action{Do: "canvas", Timeout: patience} }

// DesktopWidth waits until the desktop is so many pixels wide.
func DesktopWidth(width int) Action { return Action{Do: "size", Count: width, Timeout: patience} }

// Type types text.
func Type(text string) Action { return Action{Do: "type", Text: text, Timeout: patience} }

// Insert inserts text where the focus is without any key, as keyboards of
// screens do.
func Insert(text string) Action { return Action{Do: "insert", Text: text, Timeout: patience} }

// Inside fails unless all of an element is within the window.
func Inside(selector string) Action {
	return Action{Do: "inside", Selector: selector, Timeout: patience}
}

// Press presses a key or a chord, for example "Enter" or "Alt+F2".
func Press(key string) Action { return Action{Do: "press", Text: key, Timeout: patience} }

// Click clicks an element of the page.
func Click(selector string) Action {
	return Action{Do: "click", Selector: selector, Timeout: patience}
}

// Point clicks a point of the desktop, in the desktop's own pixels, with a
// button: "left", "middle" or "right".
func Point(x, y int, button string) Action {
	return Action{Do: "point", X: x, Y: y, Text: button, Timeout: patience}
}

// Fill sets the text of a field.
func Fill(selector, text string) Action {
	return Action{Do: "fill", Selector: selector, Text: text, Timeout: patience}
}

// Text waits until an element or field contains text. The step tells its
// whole Text.
func Text(selector, text string) Action {
	return Action{Do: "text", Selector: selector, Text: text, Timeout: patience}
}

// Wait lets time pass.
func Wait(d time.Duration) Action { return Action{Do: "wait", Timeout: d.Milliseconds()} }

// Screenshot saves a picture of the page as PNG.
func Screenshot(path string) Action {
	return Action{Do: "screenshot", Path: path, Timeout: patience}
}

// Picture is what a desktop's canvas shows.
type Picture struct {
	Width   int `json:"width"`
	Height  int `json:"height"`
	Colours int `json:"colours"` // at most 4096
}

// Step is what an action saw.
type Step struct {
	Status int     `json:"status"` // HTTP
	Text   string  `json:"text"`
	Canvas Picture `json:"canvas"`
}

// Result is what all actions saw, by index.
type Result struct {
	Steps   []Step   `json:"steps"`
	Console []string `json:"console"`
	Error   string   `json:"error"` // of the action after the last step
}

// Drive runs actions in a browser of its own and ends it. An action that fails
// fails the test, with a picture of the page beside it when TEST_ARTIFACTS
// names a directory.
func Drive(tb testing.TB, options Options, actions ...Action) Result {
	tb.Helper()
	here := filepath.Join(testutil.Repository(), "test", "browser")
	if _, err := os.Stat(filepath.Join(here, "node_modules", "playwright-core")); err != nil {
		tb.Fatalf("playwright-core is not installed: run %s", filepath.Join(here, "fetch.sh"))
	}
	if options.Timeout == 0 {
		options.Timeout = 3 * time.Minute
	}
	request := map[string]any{
		"actions": actions, "chromium": chromium(tb),
		"width": orElse(options.Width, 1280), "height": orElse(options.Height, 800), "failure": failurePath(tb), "touch": options.Touch,
	}
	input, err := json.Marshal(request)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(tb.Context(), options.Timeout)
	defer cancel()
	argv := append(append([]string{}, options.Prefix...), "node", filepath.Join(here, "drive.mjs"))
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	// Chromium's profile and sockets go where the test's other files go.
	cmd.Env = append(os.Environ(), "TMPDIR="+shortTempDir(tb))
	// node ends Chromium when it is asked to end.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		tb.Fatalf("drive browser: %v\n%s%s", err, stdout.String(), stderr.String())
	}
	var result Result
	if err := json.Unmarshal(stdout.Bytes(), &result); err != nil {
		tb.Fatalf("drive browser: %v: %s", err, stdout.String())
	}
	if result.Error != "" {
		tb.Fatalf("browser: step %d: %s\nconsole:\n%s", len(result.Steps), result.Error, strings.Join(result.Console, "\n"))
	}
	return result
}

func orElse(value, other int) int {
	if value != 0 {
		return value
	}
	return other
}

func chromium(tb testing.TB) string {
	tb.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	tb.Fatal("no Chromium is installed")
	return ""
}

// shortTempDir is a directory whose path is short enough for the sockets that
// Chromium makes there.
func shortTempDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "browser") //nolint:usetesting // its path is too long for a socket
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func failurePath(tb testing.TB) string {
	tb.Helper()
	dir := os.Getenv("TEST_ARTIFACTS")
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, strings.NewReplacer("/", "_", " ", "_").Replace(tb.Name())+".png")
}
