# shellcheck shell=bash
# What up.sh and down.sh share: where things are and how they start and stop.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

state=${REMOTEGPU_STATE_DIR:-/var/lib/remotegpu}
run=${REMOTEGPU_RUN_DIR:-/run/remotegpu}
gateway=${REMOTEGPU_GATEWAY:-0.0.0.0:7443}
api=${REMOTEGPU_API:-127.0.0.1:7480}
export REMOTEGPU_ADDR=unix://$run/node.sock
export PATH=$PATH:/usr/local/go/bin:/usr/sbin:/sbin
# shellcheck disable=SC2034 # the scripts use it
image=docker.io/remotegpu/desktop-base:latest

# What people have to set again for another command to find the same node.
given=
for name in REMOTEGPU_STATE_DIR REMOTEGPU_RUN_DIR; do
	[ -z "${!name:-}" ] || given+="$name=$(printf '%q' "${!name}") "
done

# space is the name of the containerd namespace and of the control group. In
# directories of its own a node is beside another one, and has these for itself; one
# that there was before keeps what it has.
space=$(cat "$state/space" 2>/dev/null || true)
if [ -z "$space" ]; then
	space=remotegpu
	if [ "$run" != /run/remotegpu ] && [ ! -e "$state/node.db" ]; then
		space=remotegpu-$(printf %s "$run" | sha256sum | cut -c1-8)
	fi
fi
unset REMOTEGPU_PROJECT # environments of all projects are meant

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
die() {
	printf 'Error: %s\n' "$1" >&2
	[ $# -lt 2 ] || printf 'Try: %s\n' "$2" >&2
	exit 1
}
remotegpu() { "$PWD/bin/remotegpu" "$@"; }

# alive NAME: whether the program that we started under that name still runs.
alive() {
	local pid
	pid=$(cat "$run/$1.pid" 2>/dev/null) || return 1
	[ -n "$pid" ] && [ -d "/proc/$pid" ] && [ "$(cat "$run/$1.start" 2>/dev/null)" = "$(started "$pid")" ]
}

# started PID: when the process began, in clock ticks; a pid that was given out
# again has another one.
started() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# launch NAME COMMAND…: starts a program in a session of its own, that outlives
# the terminal, with its output in a file. Not among the logs of
# environments, where the node would report it as somebody else's.
launch() {
	local name=$1
	shift
	mkdir -p "$state/programs"
	setsid "$@" >>"$state/programs/$name.log" 2>&1 </dev/null &
	local pid=$!
	echo "$pid" >"$run/$name.pid"
	started "$pid" >"$run/$name.start"
	disown
}

# halt NAME SECONDS: ends a program that launch started, gently at first.
halt() {
	if alive "$1"; then
		local pid
		pid=$(cat "$run/$1.pid")
		kill "$pid" 2>/dev/null || true
		for _ in $(seq $(($2 * 10))); do
			alive "$1" || break
			sleep 0.1
		done
		alive "$1" && kill -9 "$pid" 2>/dev/null
	fi
	rm -f "$run/$1.pid" "$run/$1.start"
}

# await SECONDS NAME COMMAND…: waits until a command succeeds; NAME's program
# must stay alive meanwhile.
await() {
	local seconds=$1 name=$2
	shift 2
	for _ in $(seq $((seconds * 10))); do
		"$@" >/dev/null 2>&1 && return
		alive "$name" || die "$name ended; the last lines of its log: $(tail -n 5 "$state/programs/$name.log")" "read $state/programs/$name.log"
		sleep 0.1
	done
	die "$name does not answer after $seconds s" "read $state/programs/$name.log"
}

# host_containerd: the host's containerd, when one answers.
host_containerd() {
	local socket=/run/containerd/containerd.sock
	[ -z "${REMOTEGPU_PRIVATE_CONTAINERD:-}" ] && [ -S $socket ] && ctr --connect-timeout 2s --address $socket version >/dev/null 2>&1 && echo $socket
}

# enter NETNS COMMAND…: runs a command in the network namespace, or here.
netns_command() { [ -z "$1" ] || echo "nsenter --net=/run/netns/$1"; }

start_containerd() {
	containerd=$(host_containerd || true)
	if [ -n "$containerd" ]; then
		say "using the host's containerd at $containerd"
		return
	fi
	containerd=$run/containerd/containerd.sock
	if ! alive containerd; then
		say "starting a private containerd"
		mkdir -p "$state/containerd" "$run/containerd"
		cat >"$run/containerd.toml" <<-TOML
			version = 2
			root = "$state/containerd"
			state = "$run/containerd"
			# What is for Kubernetes looks each second whether it has to try again what failed.
			disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
				"io.containerd.podsandbox.controller.v1.podsandbox", "io.containerd.internal.v1.restart"]
			[plugins."io.containerd.gc.v1.scheduler"]
			  pause_threshold = 0.0002
			[grpc]
			  address = "$containerd"
		TOML
		launch containerd containerd --config "$run/containerd.toml"
	fi
	await 30 containerd ctr --connect-timeout 1s --address "$containerd" version
}

start_buildkit() {
	if ! alive buildkitd; then
		say "starting BuildKit"
		launch buildkitd .tools/bin/buildkitd --addr="unix://$run/buildkitd.sock" --root="$state/buildkit" --config="$run/no-buildkitd.toml" \
			--oci-worker=false --containerd-worker=true --containerd-worker-addr="$containerd" --containerd-worker-namespace="$space" \
			--containerd-worker-snapshotter=overlayfs --containerd-worker-net=host --allow-insecure-entitlement=network.host \
			--cdi-disabled --otel-socket-path="$run/buildkit-otel.sock"
	fi
	await 60 buildkitd test -S "$run/buildkitd.sock"
}

# start_node NETNS: starts remotegpud, or restarts it when it was built anew;
# environments run on meanwhile.
start_node() {
	cat >"$run/remotegpud.toml.new" <<-TOML
		version = 1
		[node]
		state_dir = "$state"
		run_dir = "$run"
		[api]
		listen = "$api"
		[gateway]
		listen = "$gateway"
		[containerd]
		address = "$containerd"
		namespace = "$space"
		cgroup = "/$space"
		[buildkit]
		address = "unix://$run/buildkitd.sock"
		netns = "${1:+/proc/$(cat "$run/buildkitd.pid")/ns/net}"
		[network]
		upstreams = ["${REMOTEGPU_UPSTREAM:-9.9.9.9}"]
	TOML
	if alive remotegpud && cmp -s "$run/remotegpud.toml.new" "$run/remotegpud.toml" &&
		cmp -s "/proc/$(cat "$run/remotegpud.pid")/exe" bin/remotegpud; then
		rm "$run/remotegpud.toml.new"
		return
	fi
	mv "$run/remotegpud.toml.new" "$run/remotegpud.toml"
	say "starting remotegpud${1:+ in network namespace $1}"
	halt remotegpud 20
	# shellcheck disable=SC2046 # the words of the command
	launch remotegpud $(netns_command "$1") bin/remotegpud --config "$run/remotegpud.toml"
	await 60 remotegpud remotegpu node info
}
