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
	others=$(remotegpu env ls --project '' -o json | sed -n 's/^ *"name": *"\([^"]*\)".*/\1/p' | grep -vx demo || true)
	if [ -n "$others" ] && [ -z "${FORCE:-}" ]; then
		die "these environments exist besides demo: $(echo "$others" | tr '\n' ' ')" \
			"delete them (bin/remotegpu env rm --force NAME), or have all of them deleted with: make down FORCE=1"
	fi
	for name in demo $others; do
		if remotegpu env get "$name" >/dev/null 2>&1; then
			say "deleting the environment $name"
			remotegpu env rm --force "$name" >/dev/null
		fi
	done
	say "stopping remotegpud"
	halt remotegpud 20
	# shellcheck disable=SC2046 # the words of the command
	$(netns_command "$netns") bin/remotegpud --config "$run/remotegpud.toml" cleanup
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
