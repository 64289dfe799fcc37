#!/usr/bin/env python3
"""Many agents whose edge is restarted: they come back soon, and never all at once.

    bench/acceptance/herd.py [--agents N] [--away SECONDS,…] [--drain] [--profile release|debug] [--bin FOLDER]

Needs the binaries (cargo build --release --workspace --bins), root and unshare: edge and agents run in a network
namespace of their own, whose kernel counts the connections that are tried (ActiveOpens in /proc/net/snmp), also those
that nobody takes. The edge is killed (with --drain: told to end), is away for a while, and is started again on the same
port. The bounds are those of docs/connecting.md.
"""
import argparse, http.client, os, re, resource, signal, subprocess, sys, tempfile, threading, time

import run
from run import report, wait_for

# Tries of each agent in any second, on the average over all agents.
TRIES = 2.0
# The same from when the edge was away for FAR seconds: each waits for up to 4 s.
TRIES_LATER, FAR = 0.75, 5.0
# All agents are back, in seconds after the edge takes connections again.
BACK = 30.0
EVERY = 0.1


def opened():
    """Connections that this namespace has tried since it began."""
    with open("/proc/net/snmp") as f:
        names, values = [line.split() for line in f if line.startswith("Tcp:")]
    return int(values[names.index("ActiveOpens")])


class Sampler:
    """Looks at the count ten times a second."""

    def __init__(self):
        self.samples, self.over = [], False
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()

    def look(self):
        while not self.over:
            self.samples.append((time.monotonic(), opened()))
            time.sleep(EVERY)

    def end(self):
        self.over = True
        self.thread.join()

    def most(self, begin, end):
        """The most tries within one second, of those from `begin` to `end`."""
        samples = [s for s in self.samples if begin <= s[0] <= end]
        most, j = 0, 0
        for i in range(len(samples)):
            while samples[i][0] - samples[j][0] > 1.0:
                j += 1
            most = max(most, samples[i][1] - samples[j][1])
        return most


class Herd:
    def __init__(self, dir, count):
        self.dir, self.count, self.port, self.n = dir, count, run.free_port(), 0
        self.tokens = os.path.join(dir, "tokens")
        with open(self.tokens, "w") as f:
            f.write(run.TOKEN + "\n")
        self.start_edge()
        self.agents = run.Process([f"{run.BIN}/uniroute-bench", "agents", "--server", f"http://127.0.0.1:{self.port}", "--token-file", self.tokens,
                                   "--count", str(count)], os.path.join(dir, "agents.log"))
        wait_for("the agents", lambda: "ready " in self.agents.text() or self.ended(), 300)

    def ended(self):
        if self.agents.p.poll() is not None:
            raise SystemExit(f"the agents ended: {self.agents.text()}")

    def start_edge(self):
        self.n += 1
        self.edge = run.Process([f"{run.BIN}/uniroute-edge", "serve", "--http", f"127.0.0.1:{self.port}", "--admin", "127.0.0.1:0", "--token-file", self.tokens,
                                 "--data-dir", os.path.join(self.dir, "data"), "--log-format", "json"], os.path.join(self.dir, f"edge{self.n}.log"))
        found = wait_for("edge", lambda: re.search(r'"admin":"([^"]+)"', self.edge.text()), 60)
        self.admin = http.client.HTTPConnection(found.group(1))

    def sessions(self):
        self.ended()
        self.admin.request("GET", "/metrics")
        text = self.admin.getresponse().read().decode()
        return int(float(re.search(r"^uniroute_edge_sessions (\S+)", text, re.M).group(1)))

    def end(self):
        self.agents.kill()
        self.edge.kill()


def one_round(herd, away, drain):
    wait_for("all agents", lambda: herd.sessions() == herd.count, 60, EVERY)
    # Sessions that have lasted begin with the first wait again.
    time.sleep(11)
    sampler = Sampler()
    time.sleep(1)
    lost = time.monotonic()
    herd.edge.kill(signal.SIGTERM if drain else signal.SIGKILL)
    gone = time.monotonic()
    time.sleep(away)
    herd.start_edge()
    up = time.monotonic()
    wait_for("all agents", lambda: herd.sessions() == herd.count, 120, EVERY)
    back = time.monotonic()
    time.sleep(1)
    sampler.end()
    n = herd.count
    whole = sampler.most(lost - 0.5, back + 1)
    how = "told to end" if drain else "killed"
    what = f"{n} agents, edge {how}, away for {up - gone:.1f} s"
    report(f"{what}: tries", whole <= TRIES * n, f"{whole} in the busiest second, bound {TRIES * n:.0f}")
    if up - lost > FAR:
        later = sampler.most(lost + FAR, back + 1)
        report(f"{what}: tries later", later <= TRIES_LATER * n, f"{later} in the busiest second from {FAR:g} s on, bound {TRIES_LATER * n:.0f}")
    report(f"{what}: all back", back - up <= BACK, f"{back - up:.1f} s after the edge was there, bound {BACK:g} s")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--agents", type=int, default=2000)
    parser.add_argument("--away", default="0,15", help="seconds between the edge's end and its new start")
    parser.add_argument("--drain", action="store_true", help="SIGTERM instead of SIGKILL")
    parser.add_argument("--profile", default="release", choices=["release", "debug"])
    parser.add_argument("--bin", help="folder of the binaries")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.inside:
        if os.geteuid() != 0:
            raise SystemExit("needs root, for a network namespace")
        os.execvp("unshare", ["unshare", "--net", "--", sys.executable, __file__, *sys.argv[1:], "--inside"])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    run.BIN = args.bin or os.path.join(os.path.dirname(run.BIN), args.profile)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as dir:
        herd = Herd(dir, args.agents)
        try:
            for away in map(float, args.away.split(",")):
                one_round(herd, away, args.drain)
        finally:
            herd.end()
    print(f"{len(run.failures)} failed" + (": " + ", ".join(run.failures) if run.failures else ""))
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
