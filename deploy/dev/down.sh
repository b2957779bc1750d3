#!/usr/bin/env bash
# "make down": undoes what up.sh started. Images, volumes and the database stay
# unless PURGE is given.
# Usage: down.sh [PURGE]
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
purge=${1:-}
[ "$(id -u)" = 0 ] || die "make down needs root" "sudo make down"
netns=$(cat "$run/netns.name" 2>/dev/null || true)
if [ ! -e "$run/remotegpud.toml" ] && [ -z "$(ls "$run"/*.pid "$run/netns.name" 2>/dev/null)" ] && { [ -z "$purge" ] || [ ! -d "$state" ]; }; then
	say "nothing of make up was found in $run, and nothing was changed"
	echo "If it was started with REMOTEGPU_RUN_DIR or REMOTEGPU_STATE_DIR, set them here as well."
	exit
fi

if [ -e "$run/remotegpud.toml" ] && [ -x bin/remotegpud ]; then
	containerd=$(sed -n '/\[containerd\]/,/\[/s/^address = "\(.*\)"/\1/p' "$run/remotegpud.toml")
	if ! alive remotegpud && [ -S "$containerd" ]; then
		# It crashed, or the host was rebooted: it knows best what to remove.
		# shellcheck disable=SC2046 # the words of the command
		launch remotegpud $(netns_command "$netns") bin/remotegpud --config "$run/remotegpud.toml"
		await 60 remotegpud remotegpu node info
	fi
fi
if alive remotegpud; then
	# By id: two projects may have one name.
	all=$(remotegpu env ls --quiet)
	demo=$(remotegpu --project default env get demo -o json 2>/dev/null | sed -n 's/^ *"id": *"\([^"]*\)".*/\1/p' | head -n 1 || true)
	if grep -qvx "$demo" <<<"$all" && [ -z "${FORCE:-}" ]; then
		remotegpu env ls >&2
		die "there are environments besides demo" \
			"delete them (bin/remotegpu env rm --force ID), or have all of them deleted with: make down FORCE=1"
	fi
	for id in $all; do
		say "deleting the environment $id"
		remotegpu env rm --force "$id" >/dev/null
	done
	left=$(remotegpu env ls --quiet)
	[ -z "$left" ] || die "environments have come meanwhile: $(echo "$left" | tr '\n' ' ')" "run it again"
	say "stopping remotegpud"
	halt remotegpud 20
	# shellcheck disable=SC2046 # the words of the command
	$(netns_command "$netns") bin/remotegpud --config "$run/remotegpud.toml" cleanup
fi
# Without its directories nobody could end what still runs.
group=$(sed -n '/\[containerd\]/,/\[/s/^cgroup = "\(.*\)"/\1/p' "$run/remotegpud.toml" 2>/dev/null || true)
if [ -n "$group" ] && [ -n "$(cat /sys/fs/cgroup"$group"/*/cgroup.procs /sys/fs/cgroup/*"$group"/*/cgroup.procs 2>/dev/null)" ]; then
	die "environments run in the control group $group, and the node is not there to delete them" "start it with: ${given}make up; then run this again"
fi
if alive buildkitd; then
	say "stopping BuildKit"
	halt buildkitd 20
fi
if alive containerd; then
	say "stopping the private containerd"
	halt containerd 20
fi
if [ -n "$netns" ] && [ -e "$run/up.netns" ]; then
	say "removing network namespace $netns"
	ip netns del "$netns" 2>/dev/null || true
fi
# Nothing of ours may stay mounted before directories are removed.
for dir in "$run" ${purge:+"$state"}; do
	awk -v dir="$dir/" 'index($5, dir) == 1 || $5 "/" == dir {print $5}' /proc/self/mountinfo | sort -r | while read -r mount; do
		umount -l "$mount" || true
	done
done
# What is still mounted is somebody's data: it is never removed through.
rm -rf --one-file-system "$run"
if [ -n "$purge" ]; then
	say "removing $state"
	rm -rf --one-file-system "$state"
fi
say "done"
