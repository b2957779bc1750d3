// Command protodeps writes the .proto file that the API imports but that is
// not written here (protovalidate's rules) into a folder that git ignores. It
// comes out of the descriptor compiled into its published Go package, so no
// schema registry has to be reachable.
package main

import (
	"fmt"
	"os"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"github.com/jhump/protoreflect/desc"
	"github.com/jhump/protoreflect/desc/protoprint"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "protodeps:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: protodeps DIRECTORY")
	}
	file, err := desc.WrapFile(validate.File_buf_validate_validate_proto)
	if err != nil {
		return fmt.Errorf("wrap descriptor: %w", err)
	}
	printer := &protoprint.Printer{}
	return printer.PrintProtosToFileSystem([]*desc.FileDescriptor{file}, args[0])
}
