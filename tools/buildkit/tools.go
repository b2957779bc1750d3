//go:build tools

// Package buildkit pins BuildKit's programs. "go install pkg@version" refuses
// them because BuildKit's go.mod has replace directives, so they are built
// inside a module that requires them.
package buildkit

import (
	_ "github.com/moby/buildkit/cmd/buildctl"
	_ "github.com/moby/buildkit/cmd/buildkitd"
)
