#!/bin/sh
# Cargo's own tools that CI runs, where they are missing: into cargo's home, where they are found from then on.
set -eu

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
# SUBCOMMAND CRATE VERSION
install() {
    if ! cargo "$1" --version >/dev/null 2>&1; then
        echo "installing $2 $3"
        CARGO_TARGET_DIR=$build cargo install --quiet --locked "$2@$3"
    fi
}
install deny cargo-deny 0.20.2
if cargo +nightly --version >/dev/null 2>&1; then
    install fuzz cargo-fuzz 0.13.2
fi
