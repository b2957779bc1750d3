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

// CheckDigest refuses a full reference by which an image is to be called that
// has another digest than the image: whoever uses it trusts that digest. With
// the digest "" it refuses every one. IMAGE_REFERENCE_INVALID with the field.
func CheckDigest(full, digest, field string) error {
	_, named, ok := Digested(full)
	if !ok || named == digest {
		return nil
	}
	p := problem.New(problem.ImageReferenceBad, "%s names an image by its digest, and what is to be called so is yet to be made", full)
	if digest != "" {
		p.Message = full + " names another image than that of digest " + digest
	}
	return p.WithField(field).WithHint("give it a tag instead of a digest: [registry/]name[:tag]")
}

// Repository is a full reference without tag and digest; "" when it is none.
func Repository(full string) string {
	named, err := reference.ParseDockerRef(full)
	if err != nil {
		return ""
	}
	return named.Name()
}
