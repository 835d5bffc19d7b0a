# Names, addresses and helpers of the test cluster; sourced by the scripts here. README.md draws the picture.
# shellcheck shell=bash disable=SC2034
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
state=$root/target/cluster     # everything of a running cluster; `down` leaves only logs in it
archives=$root/target/images   # archives of container images, kept for the next start
binaries=${SHEAVE_BIN_DIR:-$root/target/debug}
group=sheave-cluster-$(cksum <<<"$root" | cut -d' ' -f1) # cgroup folder; worktrees don't meet

# Addresses. N counts nodes from 1. The router is the world's bridge; the API server's address is a second one of node 1.
router4=10.88.0.254 router6=fd00:88::fe
api=10.88.0.1 api_port=7443
etcd=http://$router4:2379
services=10.96.0.0/16,fd00:96::/112
pods=10.244.0.0/16,fd00:244::/48
dns=10.96.0.10
outside4=10.92.0 outside6=fd00:92:   # machines that are no nodes: .2 behind the router's .1
node4() { echo "10.88.0.1$1"; }
node6() { echo "fd00:88::1$1"; }
pods4() { echo "10.244.$1.0/24"; }
pods6() { echo "fd00:244:0:$1::/64"; }

say() { printf '%6.1f s  %s\n' "$(elapsed)" "$*" >&2; }
elapsed() { local now=${EPOCHREALTIME/./}; echo "$(((now - ${started:-$now}) / 1000))e-3"; }

until_ok() { # what seconds command...: tries until it succeeds
  local what=$1 deadline=$((SECONDS + $2)) last; shift 2
  until last=$("$@" 2>&1); do
    [ $SECONDS -lt $deadline ] || { echo "cluster: $what: not within the time; the last try said: $last" >&2; return 1; }
    sleep 0.1
  done
}

# Runs a program again whenever it ends, until a file NAME.stopped forbids it. Wants $run (pid files, marks) and $logs.
keep() { # name command...
  local name=$1; shift
  while :; do
    while [ -e "$run/$name.stopped" ]; do sleep 0.1; done
    "$@" >>"$logs/$name.log" 2>&1 </dev/null &
    echo $! >"$run/$name.pid"
    wait $! && code=0 || code=$?
    rm -f "$run/$name.pid"
    echo "-- $name ended with code $code" >>"$logs/$name.log"
    sleep 0.3
  done
}

# The cgroup folders, one per hierarchy, that a group of this name has below where the calling process is.
cgroups() { # name
  local controllers path mount
  while IFS=: read -r _ controllers path; do
    mount=/sys/fs/cgroup/${controllers:-unified}; mount=${mount/name=/}
    [ -n "$controllers" ] || [ -d "$mount" ] || mount=/sys/fs/cgroup
    path=${path%%/sheave-cluster-*}
    [ ! -d "$mount" ] || echo "$mount${path%/}/$1"
  done <<<"$(</proc/self/cgroup)"
}

# Makes a cgroup folder and its parents. Version 1: an empty cpuset takes its parent's. Version 2: the parent hands on what it has
# (one that holds processes can't, and hands on what it already does).
make_cgroup() { # folder
  local parent=${1%/*} f
  [ -d "$1" ] && return
  [ -d "$parent" ] || make_cgroup "$parent"
  for f in $(cat "$parent/cgroup.controllers" 2>/dev/null); do echo "+$f" >"$parent/cgroup.subtree_control" 2>/dev/null || true; done
  mkdir "$1"
  for f in cpuset.cpus cpuset.mems; do
    [ ! -e "$1/$f" ] || [ -e "$1/cgroup.controllers" ] || cat "$parent/$f" >"$1/$f"
  done
}
