#!/usr/bin/env bash
# A tunnel from end to end on this machine: a local site, an edge and an agent, until Ctrl-C.
#
# UNIROUTE_DEMO_PORT  the edge's port, 8080 if unset; 0 takes a free one
set -euo pipefail
cd "$(dirname "$0")/.."

data=.demo
target=${CARGO_TARGET_DIR:-target}
wanted=${UNIROUTE_DEMO_PORT:-8080}
bound=20 # seconds until each part must be ready
names=()
pids=()

say() { printf '%s\n' "$*"; }

# Ends the children in the reverse order of their start, so that nobody's peer goes first.
finish() {
    local code=$? i
    trap - EXIT
    trap '' INT TERM
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
        kill -TERM "${pids[i]}" 2>/dev/null || true
        for ((waited = 0; waited < 50; waited++)); do
            kill -0 "${pids[i]}" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "${pids[i]}" 2>/dev/null || true
        wait "${pids[i]}" 2>/dev/null || true
    done
    exit "$code"
}
trap finish EXIT
trap 'say; say "ending the demo"; exit 0' INT TERM

fail() {
    say "$1" >&2
    if [[ -s ${2:-} ]]; then
        say "last lines of $2:" >&2
        tail -n 20 "$2" | sed 's/^/  /' >&2
    fi
    exit 1
}

# start NAME COMMAND...: standard output to NAME.out, standard error to NAME.log.
start() {
    local name=$1
    shift
    # A process group of its own: Ctrl-C reaches this script only, which ends the parts in order.
    set -m
    "$@" >"$data/$name.out" 2>"$data/$name.log" </dev/null &
    pids+=($!)
    set +m
    names+=("$name")
}

# await NAME FILE PATTERN: the first match in FILE, once it is there.
await() {
    local name=$1 file=$2 pattern=$3 end=$((SECONDS + bound))
    until found=$(grep -Eo -m 1 -- "$pattern" "$file" 2>/dev/null); do
        alive
        ((SECONDS < end)) || fail "$name was not ready within $bound seconds" "$data/$name.log"
        sleep 0.05
    done
}

alive() {
    local i code
    for i in "${!pids[@]}"; do
        if ! kill -0 "${pids[i]}" 2>/dev/null; then
            code=0
            wait "${pids[i]}" 2>/dev/null || code=$?
            fail "${names[i]} ended by itself (exit code $code)" "$data/${names[i]}.log"
        fi
    done
}

taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

say "building"
cargo build --quiet --release --bins -p uniroute-edge -p uniroute-agent
cargo build --quiet --release -p uniroute-agent --example demo_site

mkdir -p "$data"
chmod 700 "$data"
rm -f "$data"/*.out "$data"/*.log

if [[ $wanted != 0 ]] && taken "$wanted"; then
    say "port $wanted is taken: the edge takes a free one (UNIROUTE_DEMO_PORT chooses)"
    wanted=0
fi

start site "$target/release/examples/demo_site" --listen 127.0.0.1:0
await site "$data/site.out" '127\.0\.0\.1:[0-9]+'
site=${found##*:}

start edge "$target/release/uniroute-edge" dev --http "127.0.0.1:$wanted" --admin 127.0.0.1:0 \
    --data-dir "$data" --log-format json
await edge "$data/edge.log" '"message":"listening".*'
await edge "$data/edge.log" '"http":"[^"]*:[0-9]+'
port=${found##*:}

UNIROUTE_TOKEN_FILE="$data/token" start agent "$target/release/uniroute" http "$site" \
    --server "http://127.0.0.1:$port" --name demo --output json
await agent "$data/agent.out" '"event":"ready".*'
await agent "$data/agent.out" '"url":"[^"]+'
url=${found#'"url":"'}
inspector=$(grep -Eo -m 1 '"inspector":"[^"]+' "$data/agent.out" | cut -d '"' -f 4 || true)

cat <<TEXT

  $url  ->  edge  ->  agent  ->  http://127.0.0.1:$site

  Open it in a browser, or try:

    curl $url/headers
    curl -N $url/events
    curl -X POST -T $target/release/uniroute $url/upload
    curl -o /dev/null -w '%{speed_download} bytes/s\n' $url/bytes/1000000000

TEXT
[[ -z $inspector ]] || say "  Requests as the agent sees them: $inspector"
say "  Logs: $data/*.log        Ctrl-C ends it."

while sleep 0.5; do
    alive
done
