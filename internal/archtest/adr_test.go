package archtest_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/problem"
	"github.com/remotegpu/remotegpu/internal/testutil"
)

func read(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(append([]string{testutil.Repository()}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestDecisionsAreInOrder(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(testutil.Repository(), "docs", "adr", "[0-9]*.md"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no decisions: %v", err)
	}
	slices.Sort(files)
	index := read(t, "docs", "adr", "README.md")
	status := regexp.MustCompile(`(?m)^Status: (accepted|superseded (in part )?by \d{4})$`)
	for i, file := range files {
		name := filepath.Base(file)
		if want := fmt.Sprintf("%04d-", i+1); !strings.HasPrefix(name, want) {
			t.Errorf("%s: want a name that begins with %s", name, want)
		}
		if !status.MatchString(read(t, "docs", "adr", name)) {
			t.Errorf("%s has no status line", name)
		}
		if !strings.Contains(index, "("+name+")") {
			t.Errorf("docs/adr/README.md does not list %s", name)
		}
	}
}

// Each direct dependency needs a line in some decision that says why.
func TestDependenciesAreDecided(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(testutil.Repository(), "docs", "adr", "[0-9]*.md"))
	if err != nil {
		t.Fatal(err)
	}
	var decisions strings.Builder
	for _, file := range files {
		decisions.WriteString(read(t, "docs", "adr", filepath.Base(file)))
	}
	cmd := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{if not (or .Indirect .Main)}}{{.Path}}{{end}}", "all")
	cmd.Dir = testutil.Repository()
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for dependency := range strings.FieldsSeq(string(out)) {
		if !strings.Contains(decisions.String(), "`"+dependency+"`") {
			t.Errorf("no decision names the direct dependency `%s`", dependency)
		}
	}
}

func TestReasonsAreDocumented(t *testing.T) {
	text := read(t, "docs", "api.md")
	for _, reason := range problem.Reasons() {
		if !strings.Contains(text, "`"+string(reason)+"`") {
			t.Errorf("docs/api.md does not document the reason %s", reason)
		}
	}
}
