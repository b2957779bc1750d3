#!/usr/bin/env bash
# "make up": a node with a desktop environment called demo, from nothing.
# Everything it starts is in $run/*.pid and undone by down.sh.
# Usage: up.sh [NETNS]
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
netns=${1:-}
[ "$(id -u)" = 0 ] || die "make up needs root" "sudo make up"

# public_keys: who may log in to demo: those that were given, else those of
# whoever runs this.
public_keys() {
	if [ -n "${SSH_AUTHORIZED_KEYS:-}" ]; then
		printf '%s\n' "$SSH_AUTHORIZED_KEYS"
	else
		{ cat ~/.ssh/*.pub "$(getent passwd "${SUDO_USER:-root}" | cut -d: -f6)"/.ssh/*.pub 2>/dev/null || true; } | sort -u
	fi
}

say "installing what is missing"
deploy/dev/packages.sh node build
say "building the programs"
make build
tools/install.sh buildkit
mkdir -p "$state" "$run"
echo "$space" >"$state/space"

if [ -n "$netns" ] && [ ! -e "/run/netns/$netns" ]; then
	say "making network namespace $netns"
	ip netns add "$netns"
	echo "$netns" >"$run/up.netns"
fi
if [ -n "$netns" ]; then
	echo "$netns" >"$run/netns.name"
	ip -n "$netns" link set lo up
fi

start_containerd
start_buildkit
start_node "$netns"

if ! remotegpu image ls -o json | grep -q "\"$image\"" || [ -n "${REBUILD:-}" ]; then
	again="run it again, it goes on with the build: $given${netns:+NETNS=$netns }make up"
	building=$(remotegpu op ls --kind image.build --target "$image" --state queued,running -q | tail -n 1)
	if [ -n "$building" ]; then
		say "waiting for the build of $image that was begun before"
		remotegpu op watch "$building" || die "the build of $image did not end well, or was not waited for" "$again"
	else
		say "building $image"
		remotegpu image build desktop-base || die "the build of $image did not end well, or was not waited for" "$again"
	fi
fi

if ! remotegpu env get demo >/dev/null 2>&1; then
	say "creating the environment demo"
	remotegpu env create demo --image "$image" --desktop -p ssh -e "SSH_AUTHORIZED_KEYS=$(public_keys)"
elif ! remotegpu env get demo -o json | grep -q ENVIRONMENT_STATE_RUNNING; then
	say "starting the environment demo"
	remotegpu env start demo
fi
say "waiting until the desktop has drawn"
(umask 077 && remotegpu desktop url demo --wait --ttl 12h >"$run/demo.url") # the link is a key

ssh_port=$(remotegpu port ls --env demo --service ssh -o json | sed -n 's/.*"externalPort": *\([0-9]*\).*/\1/p' | head -n 1)
host=$(sed -E 's#^https?://(\[[^]]*\]|[^/:]*).*#\1#' "$run/demo.url")
enter=$(netns_command "$netns")
cli="${enter:+$enter }$PWD/bin/remotegpu --addr $REMOTEGPU_ADDR"
if remotegpu env get demo -o json | grep -q '"SSH_AUTHORIZED_KEYS": *"[^"]'; then
	ssh="${enter:+$enter }ssh -p ${ssh_port:-?} gpu@$host"
else
	ssh="nobody's key is known; with one: $cli env update demo -e SSH_AUTHORIZED_KEYS=\"\$(cat ~/.ssh/id_ed25519.pub)\" --now"
fi
cat <<TEXT

The desktop of demo is ready${netns:+ (in network namespace $netns: enter it with $enter)}.

  Browser  $(cat "$run/demo.url")
           (the certificate is self-signed; the link opens connections for 12 hours)
  SSH      $ssh
  CLI      $cli env ls

Undo all of it with: ${given}make down
TEXT
