// Package imageref reads image references the way people write them.
package imageref

import (
	"errors"
	"strings"

	"github.com/distribution/reference"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// Normalize returns the full form of an image reference: "ubuntu" becomes
// "docker.io/library/ubuntu:latest", "team/app@sha256:…" keeps its digest and
// gets no tag. The error is IMAGE_REFERENCE_INVALID with field "spec.image";
// a caller with another field sets it.
func Normalize(ref string) (string, error) {
	named, err := reference.ParseDockerRef(ref)
	if err == nil {
		return named.String(), nil
	}
	p := problem.New(problem.ImageReferenceBad, "%q is no image reference", ref).WithField("spec.image").WithCause(err)
	switch {
	case ref == "":
		p.Message = "the image reference is empty"
		return "", p.WithHint("name an image, for example remotegpu/desktop-base")
	case errors.Is(err, reference.ErrNameContainsUppercase):
		return "", p.WithHint("write the name in lower case: %s", strings.ToLower(ref))
	default:
		return "", p.WithHint("write it as [registry/]name[:tag][@digest], for example remotegpu/desktop-base:latest")
	}
}

// Registry is the host (and port) that a full reference is fetched from.
func Registry(full string) (string, error) {
	named, err := reference.ParseDockerRef(full)
	if err != nil {
		return "", problem.New(problem.ImageReferenceBad, "%q is no image reference", full).WithField("spec.image").WithCause(err)
	}
	return reference.Domain(named), nil
}

// Digested splits a full reference that names an image by its digest into
// repository and digest. Another is not ok.
func Digested(full string) (repository, digest string, ok bool) {
	named, err := reference.ParseDockerRef(full)
	if err != nil {
		return "", "", false
	}
	digested, ok := named.(reference.Digested)
	if !ok {
		return "", "", false
	}
	return named.Name(), digested.Digest().String(), true
}

// Repository is a full reference without tag and digest; "" when it is none.
func Repository(full string) string {
	named, err := reference.ParseDockerRef(full)
	if err != nil {
		return ""
	}
	return named.Name()
}
