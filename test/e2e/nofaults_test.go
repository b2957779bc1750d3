package e2e_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// faultNames are the names of fault points in the sources.
func faultNames(t *testing.T) []string {
	t.Helper()
	names := []string{"REMOTEGPU_FAULTPOINTS"}
	root := testutil.Repository()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := entry.Name(); entry.IsDir() && (strings.HasPrefix(name, ".") && path != root || name == "node_modules" || name == "test") {
			return filepath.SkipDir
		} else if entry.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(node ast.Node) bool {
			call, ok := node.(*ast.CallExpr)
			if !ok {
				return true
			}
			if f, ok := call.Fun.(*ast.SelectorExpr); ok {
				if of, ok := f.X.(*ast.Ident); !ok || of.Name != "fault" || f.Sel.Name == "Within" {
					return true
				}
				for _, argument := range call.Args {
					if literal, ok := argument.(*ast.BasicLit); ok {
						if name, err := strconv.Unquote(literal.Value); err == nil && name != "" {
							names = append(names, name)
						}
					}
				}
			}
			return true
		})
		return nil
	})
	if err != nil || len(names) < 10 {
		t.Fatalf("fault points in the sources: %q, error %v", names, err)
	}
	return names
}

// What is installed has no fault points, and nothing of them; the test's
// daemon has all.
func TestNoFaultPoints(t *testing.T) {
	testutil.Require(t, testutil.Programs)
	testDaemonBuilt.Store(true)
	with, err := testDaemon()
	if err != nil {
		t.Fatal(err)
	}
	for program, want := range map[string]bool{testutil.Program("remotegpud"): false, with: true} {
		text, err := os.ReadFile(program)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range faultNames(t) {
			if bytes.Contains(text, []byte(name)) != want {
				t.Errorf("%s has the fault point %q: %t, want %t", program, name, !want, want)
			}
		}
	}
}
