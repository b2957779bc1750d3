# remotegpu. "make help" lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
export GOFLAGS := -buildvcs=false
export PATH := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin

NETNS ?=
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# Symbols of NVML (go-nvml) stay open until they are called, whatever the C
# compiler's default is: most hosts have no NVML.
LDFLAGS := -s -w -extldflags=-Wl,-z,lazy -X github.com/remotegpu/remotegpu/internal/version.Version=$(VERSION)
# What the tests of the CI tier need; see internal/testutil/require.go.
NEEDS := root,iptables,containerd,containerd2,buildkit,browser,programs,nvidia,prometheus

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

.PHONY: check-go
check-go:
	@command -v go >/dev/null || { echo "Go is not installed. Install Go 1.26 or newer (https://go.dev/dl/) and put it on PATH." >&2; exit 1; }
	version=$$(go env GOVERSION); minor=$${version#go1.}; minor=$${minor%%.*}
	if [ "$${minor//[!0-9]/}" -lt 26 ]; then
		echo "$$version is too old. Install Go 1.26 or newer (https://go.dev/dl/)." >&2; exit 1
	fi

.PHONY: up
up: check-go ## Start a node with a desktop environment "demo" (NETNS=name: inside that network namespace)
	@deploy/dev/up.sh "$(NETNS)"

.PHONY: down
down: ## Undo what "up" started; images and volumes stay (PURGE=1: they go too; FORCE=1: other environments as well)
	@FORCE="$(FORCE)" deploy/dev/down.sh "$(PURGE)"

.PHONY: build
build: check-go novnc ## Build the programs into bin/
	@go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/remotegpud
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/remotegpu ./cmd/remotegpu-logwriter

.PHONY: novnc
novnc:
	@deploy/dev/packages.sh build
	network/gateway/web/fetch.sh

.PHONY: tools
tools: check-go ## Build the pinned tools into .tools/
	@tools/install.sh proto lint containerd buildkit nvidia

.PHONY: generate
generate: check-go ## Generate gen/ from api/
	@tools/install.sh proto
	PATH=$$PWD/.tools/bin:$$PATH buf generate

.PHONY: check
check: check-go ## Lint, and prove that generated code is current
	@deploy/dev/packages.sh build test
	tools/install.sh proto lint
	PATH=$$PWD/.tools/bin:$$PATH
	buf lint
	tools/breaking.sh
	buf generate
	if [ -n "$$(git status --porcelain gen)" ]; then
		git --no-pager diff --stat gen; echo "gen/ is not current: run make generate and commit it" >&2; exit 1
	fi
	golangci-lint run ./...
	git ls-files -z '*.sh' .ci/run 'images/*/usr/local/lib/remotegpu/*' 'images/*/services/*/run' | xargs -0 shellcheck

.PHONY: fmt
fmt: check-go ## Format the code
	@tools/install.sh lint
	.tools/bin/golangci-lint fmt ./...

.PHONY: test
test: build ## Run the CI tier: unit, root and end-to-end tests
	@deploy/dev/packages.sh node build test
	tools/install.sh containerd buildkit nvidia
	test/browser/fetch.sh
	# The longest first, so that it does not run alone in the end.
	REMOTEGPU_TEST=$(NEEDS) go test -race -shuffle=on -p 2 -timeout 30m ./test/e2e ./runtime/containerd ./...

.PHONY: test-unit
test-unit: check-go ## Run the tests that need nothing
	@deploy/dev/packages.sh build
	go test -race -shuffle=on ./...

.PHONY: test-all
test-all: build ## The CI tier and what compares with peers (COUNT=1 times), the long fault table and soak
	@deploy/dev/packages.sh node build test bench
	tools/install.sh containerd buildkit nvidia
	test/browser/fetch.sh
	REMOTEGPU_TEST=all REMOTEGPU_CONTAINERD=both go test -race -shuffle=on -count=$(or $(COUNT),1) -p 2 -timeout 60m ./...
	REMOTEGPU_TEST=all REMOTEGPU_CONTAINERD=containerd go test -race -shuffle=on -timeout 60m ./test/e2e
	REMOTEGPU_TEST=all REMOTEGPU_TEST_LONG=1 go test -race -v -timeout 90m -run 'TestFaultTable|TestSoak|TestFirewallThatCannotBeChanged|TestExec' ./test/e2e

.PHONY: test-vm
test-vm: build ## A node in a virtual machine with systemd and cgroup v2, rebooted for real (root; REMOTEGPU_VM_ACCEL=kvm)
	@deploy/dev/packages.sh build vm
	tools/install.sh containerd
	test/vm/image.sh
	REMOTEGPU_TEST=vm,programs,containerd2 go test -count=1 -v -timeout 90m ./test/vm

.PHONY: test-gpu
test-gpu: build ## The conformance tests of GPUs, CUDA, EGL, Vulkan and NVENC in an environment (root; a GPU of NVIDIA with driver and toolkit)
	@deploy/dev/packages.sh node build test
	REMOTEGPU_TEST=root,iptables,containerd,programs,gpu go test -race -count=1 -v -timeout 30m -run TestGPUHardware ./test/e2e

.PHONY: fuzz
fuzz: check-go ## Fuzz what parses input from outside, each target for a while (FUZZTIME=30s)
	@git grep -noE '^func Fuzz[A-Za-z]+' -- '*_test.go' | while IFS=: read -r file _ target; do
		echo "== $${file%/*} $${target#func }"
		go test -run '^$$' -fuzz "^$${target#func }\$$" -fuzztime $(or $(FUZZTIME),30s) -fuzzminimizetime 10x "./$${file%/*}"
	done

.PHONY: bench
bench: build ## Measure against a plain containerd client, ctr, podman and docker (RUNS=15, SUITES=life,list,…)
	@deploy/dev/packages.sh node build bench
	tools/install.sh coredns
	go run ./test/bench -require -runs $(or $(RUNS),15) $(if $(SUITES),-suites $(SUITES)) -json bench.json

.PHONY: clean
clean: ## Remove what was built (not .tools/)
	@rm -rf bin network/gateway/web/novnc
