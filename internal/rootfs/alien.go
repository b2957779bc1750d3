package rootfs

import (
	"bytes"

	"github.com/remotegpu/remotegpu/internal/problem"
)

// headSize is how many bytes tell what a stream is: a block of tar.
const headSize = 512

// compression is the program that unpacks what begins so, or "".
func compression(head []byte) string {
	for program, magic := range map[string]string{
		"gzip": "\x1f\x8b", "bzip2": "BZh", "xz": "\xfd7zXZ\x00", "zstd": "\x28\xb5\x2f\xfd",
	} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return program
		}
	}
	return ""
}

// notTar tells what was sent in place of a tar stream.
func notTar(head []byte) *problem.Problem {
	if program := compression(head); program != "" {
		return problem.New(problem.ArchiveInvalid, "this is compressed with %s, not a plain tar archive", program).
			WithHint("unpack it on the way: %s -dc FILE | remotegpu env cp - NAME:DIRECTORY", program)
	}
	return invalid("this is no tar archive")
}
