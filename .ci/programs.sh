# Sourced by .ci/kube and .ci/cluster: programs that tests need, built from a pinned Go module by the Go module proxy and kept
# outside target/, in a folder keyed by the files that pin them. Callers set `name`, `module` (the module's folder), `pins`
# (files in it) and `programs` (file names), and define `build_all`; --path as argument only prints the folder.
# shellcheck shell=bash disable=SC2154
complete() { local p; for p in "${programs[@]}"; do [ -x "$1/$p" ] || return 1; done; }

build() { # name package [go flags...]: written beside and renamed, so that a cut-off build leaves nothing half done
  local program=$1 package=$2; shift 2
  [ -x "$dir/$program" ] && return
  echo "$name: building $program (a few minutes the first time)" >&2
  (cd "$module" && CGO_ENABLED=${CGO_ENABLED:-0} go build -trimpath -buildvcs=false -ldflags "-s -w ${stamp:-}" "$@" -o "$dir/$program.part" "$package")
  mv "$dir/$program.part" "$dir/$program"
}

provide() { # [--path]
  local key
  key=$(cd "$module" && cat "${pins[@]}" | sha256sum | cut -c1-16)
  dir=${SHEAVE_CACHE:-$HOME/.cache/sheave}/$name-$key
  if ! complete "$dir"; then
    [ "${1:-}" = --path ] && { echo "$name: programs are not built yet; run: make setup" >&2; exit 1; }
    command -v go >/dev/null || { echo "$name: Go 1.26 or newer is needed to build ${programs[*]}; install it" >&2; exit 1; }
    mkdir -p "$dir"
    exec 9>"$dir.lock"; flock 9
    build_all
  fi
  echo "$dir"
}
