#!/usr/bin/env bash
# Builds pinned tools from the Go module proxy into .tools/bin. Every version
# of a tool is here or in the go.mod of a directory beside it.
# Usage: tools/install.sh SET…   sets: proto lint containerd buildkit nvidia coredns
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
export GOBIN=$root/.tools/bin
export GOFLAGS=-buildvcs=false
mkdir -p "$GOBIN" .tools/stamp

BUF=v1.75.0
PROTOC_GEN_GO=v1.36.12
PROTOC_GEN_CONNECT_GO=v2.0.2
GOLANGCI_LINT=v2.15.0
GOFUMPT=v0.12.0
CONTAINERD_2=v2.4.2
GRPCURL=v1.9.4
NVIDIA_TOOLKIT=v1.20.1

# once NAME VERSION COMMAND…: runs the command unless that version is there.
once() {
	local stamp=.tools/stamp/$1-$2
	shift 2
	[ -e "$stamp" ] && return
	echo "building ${stamp##*/}"
	"$@"
	touch "$stamp"
}

install() { CGO_ENABLED=${CGO:-0} go install -trimpath -ldflags='-s -w' "$@"; }

# NVIDIA's container toolkit finds NVML when it runs, so symbols stay open until
# they are called, whatever the C compiler's default is. Its programs tell their
# version, which is looked at.
build_nvidia() {
	CGO_ENABLED=1 go install -trimpath \
		-ldflags="-s -w -extldflags=-Wl,-z,lazy -X github.com/NVIDIA/nvidia-container-toolkit/internal/info.version=${NVIDIA_TOOLKIT#v}" \
		github.com/NVIDIA/nvidia-container-toolkit/cmd/{nvidia-ctk,nvidia-cdi-hook,nvidia-container-runtime-hook}@$NVIDIA_TOOLKIT
}

build_buildkit() {
	(cd tools/buildkit && CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$GOBIN/buildkitd" github.com/moby/buildkit/cmd/buildkitd)
}

build_coredns() {
	(cd tools/coredns && CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$GOBIN/coredns" .)
}

write_protodeps() {
	rm -rf .tools/proto
	(cd tools/protodeps && go run . "$root/.tools/proto")
}

# checksum FILE…: a version for what is pinned in a go.sum.
checksum() { cat "$@" | sha256sum | cut -c1-12; }

for set in "$@"; do
	case $set in
	proto)
		once buf $BUF install github.com/bufbuild/buf/cmd/buf@$BUF
		once protoc-gen-go $PROTOC_GEN_GO install google.golang.org/protobuf/cmd/protoc-gen-go@$PROTOC_GEN_GO
		once protoc-gen-connect-go $PROTOC_GEN_CONNECT_GO install connectrpc.com/connect/v2/cmd/protoc-gen-connect-go@$PROTOC_GEN_CONNECT_GO
		once protodeps "$(checksum tools/protodeps/go.sum tools/protodeps/main.go)" write_protodeps
		;;
	lint)
		once golangci-lint $GOLANGCI_LINT install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$GOLANGCI_LINT
		once gofumpt $GOFUMPT install mvdan.cc/gofumpt@$GOFUMPT
		;;
	containerd)
		once containerd $CONTAINERD_2 install github.com/containerd/containerd/v2/cmd/{containerd,containerd-shim-runc-v2,ctr}@$CONTAINERD_2
		once grpcurl $GRPCURL install github.com/fullstorydev/grpcurl/cmd/grpcurl@$GRPCURL
		;;
	buildkit)
		once buildkitd "$(checksum tools/buildkit/go.sum)" build_buildkit
		;;
	nvidia)
		once nvidia-container-toolkit $NVIDIA_TOOLKIT build_nvidia
		;;
	coredns)
		once coredns "$(checksum tools/coredns/go.sum tools/coredns/main.go)" build_coredns
		;;
	*)
		echo "tools/install.sh: unknown set $set" >&2
		exit 2
		;;
	esac
done
