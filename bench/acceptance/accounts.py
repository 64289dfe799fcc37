#!/usr/bin/env python3
"""What accounts, counts and limits promise, seen on the release build: one check a promise.

    bench/acceptance/accounts.py [--requests N] [--only NAME,…]

Needs the release binaries (cargo build --release --workspace --bins). Everything runs on loopback, with
SQLite in a temporary folder, and is ended by pid.
"""
import argparse, http.client, json, os, re, subprocess, tempfile, threading, time
import run
from run import BIN, Process, free_port, report, wait_for


class Accounts:
    """A local server, an edge without pre-shared tokens, and an agent of a user's."""

    def __init__(self, dir):
        self.dir, self.n, self.processes = dir, 0, []
        self.origin = self.process([f"{BIN}/uniroute-bench", "origin", "--listen", "127.0.0.1:0"])
        self.upstream = wait_for("origin", lambda: re.search(r"listening (\S+)", self.origin.text())).group(1)
        self.port = free_port()
        self.data = os.path.join(dir, "data")
        self.edge = self.process([f"{BIN}/uniroute-edge", "serve", "--http", f"127.0.0.1:{self.port}", "--admin", "127.0.0.1:0",
                                  "--quic", "off", "--data-dir", self.data, "--log-format", "json"])
        self.admin = wait_for("edge", lambda: re.search(r'"admin":"([^"]+)"', self.edge.text())).group(1)
        self.password = self.cli("user", "add", "ada@example.com", "--role", "admin").strip().splitlines()[-1].split()[-1]
        self.token = self.new_token()
        self.agent = self.start_agent(self.token)
        login = self.call("POST", "/auth/login", {"email": "ada@example.com", "password": self.password})
        self.access = login["access_token"]
        self.tunnel = wait_for("tunnel", lambda: self.call("GET", "/tunnels")["items"])[0]["id"]

    def process(self, args, env=None):
        self.n += 1
        process = Process(args, os.path.join(self.dir, f"{self.n}.log"), env)
        self.processes.append(process)
        return process

    def cli(self, *args):
        done = subprocess.run([f"{BIN}/uniroute-edge", *args, "--data-dir", self.data], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"uniroute-edge {args}: {done.stderr}")
        return done.stdout

    def new_token(self):
        return re.search(r"ur_\w{38}", self.cli("token", "add", "ada@example.com", "--name", "bench")).group(0)

    def start_agent(self, token, name="demo"):
        agent = self.process([f"{BIN}/uniroute", "http", self.upstream, "--server", f"http://127.0.0.1:{self.port}", "--state-dir",
                              os.path.join(self.dir, "state-" + name), "--name", name, "--output", "json"], {"UNIROUTE_TOKEN": token})
        wait_for("agent", lambda: '"event":"ready"' in agent.text(), every=0.005)
        return agent

    def call(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"host": f"localhost:{self.port}"}
        if body is not None:
            headers["content-type"] = "application/json"
        if hasattr(self, "access"):
            headers["authorization"] = f"Bearer {self.access}"
        connection.request(method, "/api/v1" + path, json.dumps(body) if body is not None else None, headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status >= 400:
            raise SystemExit(f"{method} {path}: {answer.status} {text!r}")
        return json.loads(text) if text else None

    def load(self, path, seconds, connections):
        done = subprocess.run([f"{BIN}/uniroute-bench", "load", "requests", "--url", f"http://127.0.0.1:{self.port}{path}", "--host",
                               f"demo.localhost:{self.port}", "--connections", str(connections), "--seconds", str(seconds)],
                              capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    def metric(self, name):
        with_slash = http.client.HTTPConnection(self.admin, timeout=10)
        with_slash.request("GET", "/metrics")
        text = with_slash.getresponse().read().decode()
        return float(re.search(rf"^uniroute_edge_{name}(?:_total)? (\S+)", text, re.M).group(1))

    def sessions(self):
        return self.metric("sessions")

    def end(self):
        for process in reversed(self.processes):
            process.kill()


def counts(world, requests):
    """Counters equal the load generator's number to the request."""
    # Of the checks before.
    sent, errors = total(world.call("GET", f"/tunnels/{world.tunnel}/stats")), 0
    while sent < requests:
        seen = world.load("/1k", 10, 64)
        sent, errors = sent + seen["requests"], errors + seen["errors"]
    stats = wait_for("statistics", lambda: (s := world.call("GET", f"/tunnels/{world.tunnel}/stats")) and total(s) >= sent and s)
    row = wait_for("the row", lambda: (r := world.call("GET", f"/tunnels/{world.tunnel}")) and r["request_count"] >= sent and r)
    usage = world.call("GET", "/usage")["months"][0]["requests"]
    logged = world.metric("request_rows_written") + world.metric("request_rows_left_out") + world.metric("request_rows_lost")
    wait_for("rows", lambda: world.metric("request_rows_waiting") == 0)
    logged = world.metric("request_rows_written") + world.metric("request_rows_left_out") + world.metric("request_rows_lost")
    ok = total(stats) == row["request_count"] == usage == sent == logged and errors == 0
    report("counts", ok, f"{sent} requests, {errors} errors; stats {total(stats)}, row {row['request_count']}, usage {usage}, "
                         f"rows written, left out and lost {logged:.0f} ({world.metric('request_rows_written'):.0f} written)")


def total(stats):
    return stats["total"]["requests"]


def percentiles(world, _):
    """p50 and p99 within 5 % of the load generator's."""
    # A minute of its own: the statistics are of the last ones.
    time.sleep(61 - time.time() % 60)
    seen = world.load("/varied", 40, 16)
    time.sleep(63 - time.time() % 60)
    recent = world.call("GET", f"/tunnels/{world.tunnel}/stats")["recent"]
    latency = next(part for part in recent if part["requests"])["latency_ms"]
    off = {q: latency[q] / seen[f"{q}_ms"] - 1 for q in ("p50", "p99")}
    report("percentiles", all(abs(o) <= 0.05 for o in off.values()),
           ", ".join(f"{q} {latency[q]:.1f} ms against {seen[f'{q}_ms']:.1f} ({off[q]:+.1%})" for q in off))


def revocation(world, _):
    """A revoked token's session is gone within 2 s, whether the API says so or the command line."""
    took = {}
    for how in ("api", "command line"):
        token = world.new_token()
        rows = world.call("GET", "/tokens")["items"]
        agent = world.start_agent(token, f"revoked-{how.split()[0]}")
        before, began = world.sessions(), time.monotonic()
        if how == "api":
            world.call("DELETE", f"/tokens/{rows[0]['id']}")
        else:
            world.cli("token", "revoke", rows[0]["id"])
        wait_for("the session ends", lambda: world.sessions() < before, every=0.005)
        took[how] = time.monotonic() - began
        wait_for("the agent ends", lambda: agent.p.poll() is not None)
        took[how + ", exit"] = agent.p.returncode
    ok = all(took[how] < 2 and took[how + ", exit"] == 4 for how in ("api", "command line"))
    report("revocation", ok, ", ".join(f"{how} {seen:.2f}" if "exit" not in how else f"{how} {seen}" for how, seen in took.items()))


def paused(world, _):
    """The page of a paused tunnel within 1 s; traffic again within 1 s."""
    def status():
        connection = http.client.HTTPConnection("127.0.0.1", world.port, timeout=10)
        connection.request("GET", "/1k", headers={"host": f"demo.localhost:{world.port}"})
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("x-uniroute-error")
    took = []
    for action, wanted in (("pause", (503, "UR-1010")), ("resume", (200, None))):
        began = time.monotonic()
        world.call("POST", f"/tunnels/{world.tunnel}/{action}")
        wait_for(action, lambda: status() == wanted, every=0.002)
        took.append(time.monotonic() - began)
    report("paused", max(took) < 1, f"page after {took[0] * 1000:.0f} ms, traffic after {took[1] * 1000:.0f} ms")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    checks = [paused, revocation, counts, percentiles]
    only = set(filter(None, args.only.split(",")))
    with tempfile.TemporaryDirectory() as dir:
        world = Accounts(dir)
        try:
            for check in checks:
                if not only or check.__name__ in only:
                    check(world, args.requests)
        finally:
            world.end()
    raise SystemExit(1 if run.failures else 0)


if __name__ == "__main__":
    main()
