#!/usr/bin/env python3
"""Where the CPU goes: edge and agent under perf, one load after the other, as a table of shares.

    bench/profile.py [--seconds N] [--only NAME,…] [--symbols]

Needs the release binaries (cargo build --release --workspace --bins) and perf (Debian: linux-perf).
Loopback only. Prints Markdown: shares of edge and agent together, in percent of their samples.
"""
import argparse, collections, json, os, re, signal, subprocess, tempfile, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BIN = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release")
TOKEN = "profile-token-0123456789"
LOADS = {
    "small requests": ["requests", "--connections", "64"],
    "new connections": ["requests", "--connections", "64", "--new-connections"],
    "WebSocket echo": ["echo", "--connections", "16"],
    "download": ["download", "--bytes", str(1 << 50)],
    "upload": ["upload", "--bytes", str(1 << 50)],
}
# The first that fits has the sample. Kernel symbols first: they have no namespaces.
KERNEL = [
    ("kernel: task switches, wake-ups, epoll", r"finish_task_switch|schedule|try_to_wake|ttwu|wake_up|epoll|ep_|futex|eventfd|select_task|enqueue|dequeue|pick_next|update_|idle|raw_spin_unlock_irq|hrtimer|ktime|tick_"),
    ("kernel: copies", r"copy_(to|from)_(iter|user)|_copy_|rep_movs|check_object|memcpy|memset|clear_page"),
    ("kernel: sockets and TCP", r"."),
]
USER = [
    ("copies (memmove)", r"mem(move|cpy|set)"),
    ("allocation", r"mi_|malloc|free|realloc"),
    ("masking and WebSocket framing", r"carrier::ws|apply_mask|mux::batch"),
    ("mux", r"mux::|lanes::|hashbrown.*u32"),
    ("frames, heads, protobuf", r"prost|uniroute_proto|stream::|header_map"),
    ("HTTP (hyper, httparse, http)", r"hyper|httparse|http::|http_body"),
    ("tokio, mio", r"tokio|mio::"),
    ("bytes", r"bytes::"),
    ("edge and agent themselves", r"uniroute"),
    ("the rest", r"."),
]


def wait_for(path, pattern, bound=20.0):
    end = time.monotonic() + bound
    while time.monotonic() < end:
        with open(path, errors="replace") as f:
            if found := re.search(pattern, f.read()):
                return found.group(1)
        time.sleep(0.02)
    raise SystemExit(f"{path}: no {pattern}")


def kind(dso, symbol):
    rules = KERNEL if dso.startswith("[kernel") or dso == "[k]" else USER
    return next(name for name, pattern in rules if re.search(pattern, symbol))


def shares(data):
    report = subprocess.run(["perf", "report", "-i", data, "--no-children", "-g", "none", "--sort", "dso,sym", "--stdio"],
                            capture_output=True, text=True).stdout
    found, symbols = collections.Counter(), []
    for line in report.splitlines():
        if m := re.match(r"\s+([\d.]+)%\s+(\S+)\s+\[(.)\]\s+(.+?)\s*$", line):
            share, dso = float(m.group(1)), "[kernel" if m.group(3) == "k" else m.group(2)
            found[kind(dso, m.group(4))] += share
            symbols.append((share, dso, m.group(4)))
    return found, symbols


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--only", default="")
    parser.add_argument("--symbols", action="store_true", help="also the 20 costliest symbols of each load")
    args = parser.parse_args()
    only = [name for name in args.only.split(",") if name]
    columns = {}
    with tempfile.TemporaryDirectory() as dir:
        processes, log = [], lambda name: os.path.join(dir, name)

        def start(name, command, **env):
            out = open(log(name), "wb")
            processes.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=dir, env={**os.environ, **env}))
            return processes[-1].pid

        try:
            with open(log("tokens"), "w") as f:
                f.write(TOKEN + "\n")
            start("origin", [f"{BIN}/uniroute-bench", "origin"])
            origin = wait_for(log("origin"), r"listening (\S+)")
            edge = start("edge", [f"{BIN}/uniroute-edge", "serve", "--http", "127.0.0.1:0", "--admin", "off", "--quic", "off",
                                  "--token-file", "tokens", "--log-format", "json"])
            port = wait_for(log("edge"), r'"http":"127.0.0.1:(\d+)"')
            agent = start("agent", [f"{BIN}/uniroute", "http", origin, "--server", f"http://127.0.0.1:{port}", "--state-dir", dir,
                                    "--name", "bench", "--output", "json", "--transport", "ws"], UNIROUTE_TOKEN=TOKEN)
            wait_for(log("agent"), r'("ready")')
            for name, load in LOADS.items():
                if only and name not in only:
                    continue
                command = [f"{BIN}/uniroute-bench", "load", *load, "--url", f"http://127.0.0.1:{port}/1k", "--host", f"bench.localhost:{port}",
                           "--seconds", str(args.seconds + 2)]
                loading = subprocess.Popen(command, stdout=open(log("load"), "wb"))
                time.sleep(1)
                subprocess.run(["perf", "record", "-q", "-F", "1999", "-p", f"{edge},{agent}", "-o", log("perf"), "--", "sleep", str(args.seconds)],
                               stderr=subprocess.DEVNULL)
                loading.wait()
                columns[name], symbols = shares(log("perf"))
                if args.symbols:
                    for share, dso, symbol in sorted(symbols, reverse=True)[:20]:
                        print(f"  {name}: {share:5.2f} {dso} {symbol}")
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                process.wait(30)
    print("| share of samples, % | " + " | ".join(columns) + " |")
    print("| --- |" + " --: |" * len(columns))
    for name, _ in KERNEL + USER:
        print(f"| {name} | " + " | ".join(f"{column[name]:.1f}" for column in columns.values()) + " |")


if __name__ == "__main__":
    main()
