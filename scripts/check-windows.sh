#!/bin/sh
# The agent for Windows, from here: it compiles for x86_64-pc-windows-gnu and has no lints, and it runs
# under Wine against an edge of this machine: scripts/check-windows.sh [--lints | --no-wine]
#
# Says what it leaves out: without the Rust target or a C compiler for it there is nothing to be done,
# without Wine the agent is not run. The target's artefacts have a folder of their own.
set -eu
cd "$(dirname "$0")/.."

target=x86_64-pc-windows-gnu
compiler=x86_64-w64-mingw32-gcc
folder=${CARGO_TARGET_DIR:-$PWD/target}
wine=/usr/lib/wine/wine64
what=${1:-all}

skip() {
    echo "NOT CHECKED: $1"
    exit 0
}

# install PACKAGE: quietly, if this is a Debian where we may.
install() {
    command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" -eq 0 ] || return 0
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -qq --no-install-recommends "$1" >/dev/null 2>&1 || {
        apt-get update -qq >/dev/null 2>&1 || true
        apt-get install -y -qq --no-install-recommends "$1" >/dev/null 2>&1 || true
    }
}

has_target() { rustc --print target-libdir --target "$target" 2>/dev/null | xargs test -d; }

has_target || rustup target add "$target" >/dev/null 2>&1 || true
has_target || skip "no Rust target $target (rustup target add $target)"
command -v "$compiler" >/dev/null 2>&1 || install gcc-mingw-w64-x86-64-win32
command -v "$compiler" >/dev/null 2>&1 || skip "no $compiler (Debian: gcc-mingw-w64-x86-64)"

echo "== lints for $target"
CARGO_TARGET_DIR="$folder/windows" cargo clippy --target "$target" -p uniroute-agent -- -D warnings
[ "$what" != --lints ] || exit 0

echo "== build for $target"
CARGO_TARGET_DIR="$folder/windows" cargo build --target "$target" -p uniroute-agent --bin uniroute
[ "$what" != --no-wine ] || exit 0

[ -x "$wine" ] || install wine64
[ -x "$wine" ] || skip "no Wine (Debian: wine64): the agent is compiled, and was not run"
profile=release
[ -x "$folder/$profile/uniroute-edge" ] || profile=debug
[ -x "$folder/$profile/uniroute-edge" ] || skip "no edge (cargo build --workspace --bins): the agent is compiled, and was not run"
echo "== under Wine"
bench/acceptance/windows.py --wine "$wine" --profile "$profile" --exe "$folder/windows/$target/debug/uniroute.exe"
