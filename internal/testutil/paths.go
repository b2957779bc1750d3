package testutil

import (
	"path/filepath"
	goruntime "runtime"
)

// Repository is the root directory of the checkout.
func Repository() string {
	_, file, _, _ := goruntime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// Tool is the path of a program that "make tools" builds.
func Tool(name string) string { return filepath.Join(Repository(), ".tools", "bin", name) }

// Program is the path of one of our programs as "make build" leaves it.
func Program(name string) string { return filepath.Join(Repository(), "bin", name) }
