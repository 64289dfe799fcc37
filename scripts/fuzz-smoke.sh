#!/bin/sh
# Runs fuzz targets for a few seconds each (default 10): scripts/fuzz-smoke.sh [SECONDS [all]]
# The golden vectors are what they begin with. "captures" runs only with "all": it needs the whole agent,
# which takes minutes to build for fuzzing, and the agent's own tests drive the same entry.
set -eu

seconds=${1:-10}
which=${2:-}
cd "$(dirname "$0")/.."

if ! cargo +nightly --version >/dev/null 2>&1 || ! cargo +nightly fuzz --version >/dev/null 2>&1; then
    echo "no nightly toolchain with cargo-fuzz (cargo install cargo-fuzz): nothing is fuzzed."
    echo "The property tests over the same entry points stand in: cargo test -p uniroute-shared --test it fuzz_entries"
    exit 0
fi

# seed TARGET FOLDER BYTE: the vectors of FOLDER, each after the byte that chooses the variant.
seed() {
    mkdir -p "fuzz/corpus/$1"
    for file in proto/vectors/"$2"/*.hex; do
        name=$2-$(basename "$file" .hex)-$3
        { echo "$3"; sed 's/#.*//' "$file"; } | xxd -r -p >"fuzz/corpus/$1/$name"
    done
}

if command -v xxd >/dev/null 2>&1; then
    seed ws ws 00
    seed ws ws 01
    seed mux mux 00
    seed mux mux 01
    seed mux ws 02
    seed mux ws 03
    seed request_stream stream 00
    seed control_stream control 00
    seed control_stream control 01
    # The four bytes of the frame's header are no part of the message.
    seed head stream 00
    for file in fuzz/corpus/head/stream-*-00; do
        tail -c +6 "$file" >"$file.tmp" && mv "$file.tmp" "$file"
    done
fi
# The first byte chooses what the rest is read as, the second how.
mkdir -p fuzz/corpus/captures
printf '\003\003\201\005hello\211\000\210\002\003\350' >fuzz/corpus/captures/websocket
printf '\001\003data: a\n\nevent: b\r\ndata: c\r\n\r\n' >fuzz/corpus/captures/events
printf '\002\003\000\000\000\000\002ab\001\000\000\000\001c' >fuzz/corpus/captures/grpc
{ printf '\000\000'; printf 'hello hello hello' | gzip -n; } >fuzz/corpus/captures/gzip
mkdir -p fuzz/corpus/config_file fuzz/artifacts
cp edge/src/*.toml agent/src/*.toml fuzz/corpus/config_file/

for target in $(cargo +nightly fuzz list); do
    features=
    if [ "$target" = captures ]; then
        [ "$which" = all ] || continue
        features="--features captures"
    fi
    echo "== $target"
    # shellcheck disable=SC2086 # two words, or none
    cargo +nightly fuzz run $features "$target" -- -max_total_time="$seconds" -max_len=65536 -timeout=10 -print_final_stats=1 2>&1 |
        tee "fuzz/artifacts/$target.log" | grep -E '^stat::number_of_executed_units|panicked|ERROR|SUMMARY' || true
    if ! grep -q '^Done ' "fuzz/artifacts/$target.log"; then
        tail -n 40 "fuzz/artifacts/$target.log"
        echo "$target failed; what did it lies in fuzz/artifacts/$target" >&2
        exit 1
    fi
done
