#!/usr/bin/env bash
# Makes the image of the virtual machine that the tests of this directory
# start: Debian of the host's release with systemd, containerd and sshd, its
# kernel and initrd beside it, in .tools/vm/image. It is made anew when this
# file or what lies in image/ changes, and after a month, for updates.
set -euo pipefail
cd "$(dirname "$0")"
here=$PWD
tools=$(cd ../.. && pwd)/.tools/vm

. /etc/os-release
if [ "$ID" != debian ]; then
	# The programs under test are linked to the C library of the host.
	echo "the virtual machine is Debian of the host's release, and this host is $ID" >&2
	exit 1
fi
recipe=$(find image.sh image -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum)
stamp="$VERSION_CODENAME $(date +%Y-%m) ${recipe%% *}"
if [ "$(cat "$tools/image/stamp" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

packages=systemd-sysv,dbus,udev,kmod,openssh-server,ca-certificates
packages+=,linux-image-cloud-amd64,initramfs-tools,zstd
packages+=,containerd,runc,iptables,nftables,iproute2,conntrack,procps,util-linux,e2fsprogs,xfsprogs

mkdir -p "$tools"
work=$(mktemp -d "$tools/new-XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
echo "making the image of the virtual machine ($VERSION_CODENAME)"
# Files that packages shall not bring; the initrd has what this machine needs
# and is unpacked by an emulated processor.
if ! mmdebstrap --mode=root --variant=minbase --format=directory --include="$packages" \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' \
	--essential-hook="cp -r '$here/image/.' \"\$1\"" \
	--chrooted-customize-hook='systemctl enable systemd-networkd' \
	--chrooted-customize-hook='systemctl mask systemd-logind e2scrub_reap apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
		e2scrub_all.timer fstrim.timer man-db.timer systemd-networkd-wait-online' \
	--chrooted-customize-hook='passwd --delete root; rm -f /etc/ssh/ssh_host_*' \
	"$VERSION_CODENAME" "$work/root" >"$work/log" 2>&1; then
	tail -n 20 "$work/log" >&2
	exit 1
fi
cp -L "$work/root/vmlinuz" "$work/root/initrd.img" "$work/"
truncate -s 4G "$work/root.ext4"
mke2fs -q -t ext4 -L root -E lazy_itable_init=1,root_owner=0:0 -d "$work/root" "$work/root.ext4"
rm -rf --one-file-system "$work/root"
echo "$stamp" >"$work/stamp"
rm -rf "$tools/image"
mv "$work" "$tools/image"
