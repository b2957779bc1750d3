#!/bin/sh
# Fetches the pinned VNC client with npm and puts what the page needs into
# novnc/, from where the gateway embeds it. Does nothing when it is there.
set -eu
cd "$(dirname "$0")"
want=$(sha256sum package-lock.json)
if [ "$(cat novnc/.lock 2>/dev/null || true)" = "$want" ]; then
	exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp package.json package-lock.json .npmrc "$work"
(cd "$work" && npm ci --ignore-scripts --no-audit --no-fund)
package=$work/node_modules/@novnc/novnc
rm -rf novnc
mkdir novnc
cp -R "$package/core" "$package/vendor" "$package/LICENSE.txt" novnc/
printf '%s\n' "$want" >novnc/.lock
