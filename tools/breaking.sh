#!/usr/bin/env bash
# Compares the contract in api/ with the last release, or with the main branch
# of origin while there is none: a change that breaks clients fails.
set -euo pipefail
cd "$(dirname "$0")/.."
base=$(git describe --tags --abbrev=0 2>/dev/null || git rev-parse --verify --quiet origin/main || true)
if [ -z "$base" ] || ! git cat-file -e "$base:buf.yaml" 2>/dev/null; then
	echo "buf breaking: there is no earlier contract to compare with"
	exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git archive "$base" buf.yaml api | tar -x -C "$work"
mkdir -p "$work/.tools"
cp -R .tools/proto "$work/.tools/proto" # what the contract imports, not part of it
.tools/bin/buf breaking --against "$work"
