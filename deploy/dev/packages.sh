#!/usr/bin/env bash
# Installs what is missing from the distribution's packages. It never removes a
# package, and it leaves alone what is there already, whoever installed it: a
# program that is found is not installed again (Docker's containerd.io, say).
# Usage: deploy/dev/packages.sh SET…   sets: node build test bench vm
set -euo pipefail

declare -A programs=(
	[node]="containerd:containerd containerd-shim-runc-v2:containerd runc:runc iptables:iptables iptables-restore:iptables ip:iproute2 nsenter:util-linux"
	[build]="gcc:gcc curl:curl npm:npm node:nodejs mmdebstrap:mmdebstrap"
	[test]="chromium:chromium conntrack:conntrack nft:nftables jq:jq sysctl:procps shellcheck:shellcheck Xvnc:tigervnc-standalone-server xsetroot:x11-xserver-utils xterm:xterm setpriv:util-linux mkfs.ext4:e2fsprogs dig:bind9-dnsutils prometheus:prometheus promtool:prometheus"
	[bench]="dockerd:docker.io podman:podman conntrack:conntrack firewalld:firewalld ufw:ufw dnsperf:dnsperf"
	[vm]="mmdebstrap:mmdebstrap mke2fs:e2fsprogs qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils"
)
# Headers that no program stands for.
declare -A files=(
	[build]="/usr/include/stdio.h:libc6-dev"
	[test]="/usr/include/EGL/eglext.h:libegl-dev /usr/include/vulkan/vulkan.h:libvulkan-dev /usr/include/ffnvcodec/nvEncodeAPI.h:libffmpeg-nvenc-dev"
)

log=$(mktemp)
trap 'rm -f "$log"' EXIT
missing=()
for set in "$@"; do
	for entry in ${programs[$set]:?unknown set $set}; do
		PATH=$PATH:/usr/sbin:/sbin command -v "${entry%%:*}" >/dev/null || missing+=("${entry#*:}")
	done
	for entry in ${files[$set]:-}; do
		[ -e "${entry%%:*}" ] || missing+=("${entry#*:}")
	done
done
[ ${#missing[@]} -gt 0 ] || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)

if [ "$(id -u)" != 0 ]; then
	echo "these packages are missing and only root can install them: ${missing[*]}" >&2
	exit 1
fi
command -v apt-get >/dev/null || {
	echo "these packages are missing, and this is not Debian or Ubuntu: ${missing[*]}" >&2
	exit 1
}
echo "installing ${missing[*]}"
# Tests run a firewalld of their own. The package would start one for the whole
# host, and close it.
if [[ " ${missing[*]} " == *" firewalld "* ]] && [ ! -e /etc/systemd/system/firewalld.service ] && [ -d /etc/systemd/system ]; then
	ln -s /dev/null /etc/systemd/system/firewalld.service
	echo "firewalld is masked; to use it: systemctl unmask firewalld"
fi
# Tests run a Prometheus of their own, too.
if [[ " ${missing[*]} " == *" prometheus "* ]] && [ ! -e /etc/systemd/system/prometheus.service ] && [ -d /etc/systemd/system ]; then
	ln -s /dev/null /etc/systemd/system/prometheus.service
	echo "prometheus is masked; to use it: systemctl unmask prometheus"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >/dev/null
for i in "${!missing[@]}"; do
	# Ubuntu calls it otherwise.
	if [ "${missing[i]}" = chromium ] && ! apt-cache show chromium >/dev/null 2>&1; then missing[i]=chromium-browser; fi
done
if ! apt-get install -q -y -o DPkg::Lock::Timeout=300 --no-install-recommends --no-remove "${missing[@]}" >"$log" 2>&1; then
	tail -n 20 "$log" >&2
	echo "installing ${missing[*]} failed; nothing was removed" >&2
	exit 1
fi
