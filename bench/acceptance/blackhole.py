#!/usr/bin/env python3
"""A link that goes dead without a word, under traffic: both ends notice, and the session is replaced.

    bench/acceptance/blackhole.py [--rounds N] [--profile release|debug] [--transport ws|quic|auto]

Needs the binaries (cargo build --release --workspace --bins), root, ip, ss and nft. Edge and visitors are in one network
namespace and the agent with its local server in another, with a link between them on which all packets of the
connections that are open are dropped: no reset, no ICMP. New connections pass, as after a NAT that has lost its table.
A visitor asks ten times a second; what counts is the time from the first packet that is dropped to the first answer
over the next session, and to the edge's end of the old one.
"""
import argparse, http.server, json, os, re, signal, subprocess, sys, tempfile, threading, time, http.client

import run
from run import report, wait_for

# The promise, in seconds.
BOUND = 10.0
EDGE, AGENT = "10.199.0.1", "10.199.0.2"
PORT = 8080


def sh(*args):
    subprocess.run(args, check=True, stdout=subprocess.DEVNULL)


class Link:
    """Two network namespaces; gone at its end."""

    def __init__(self):
        self.a, self.b = f"ur-a-{os.getpid()}", f"ur-b-{os.getpid()}"
        for name in (self.a, self.b):
            sh("ip", "netns", "add", name)
            sh("ip", "-n", name, "link", "set", "lo", "up")
        sh("ip", "link", "add", "ura", "netns", self.a, "type", "veth", "peer", "name", "urb", "netns", self.b)
        for name, device, address in ((self.a, "ura", EDGE), (self.b, "urb", AGENT)):
            sh("ip", "-n", name, "address", "add", f"{address}/24", "dev", device)
            sh("ip", "-n", name, "link", "set", device, "up")
            # What comes in is dropped, at both ends: who sends is not told.
            sh(*self.command(name, ["nft", "add table inet hole; add chain inet hole in { type filter hook prerouting priority -300; }"]))

    def command(self, name, args):
        return ["ip", "netns", "exec", name, *args]

    def ports(self, transport):
        """The agent's ports of the connections that are open."""
        flags = "-Huna" if transport == "quic" else "-Htn"
        text = subprocess.run(self.command(self.b, ["ss", flags]), capture_output=True, text=True, check=True).stdout
        if transport == "quic":
            # The only sockets for datagrams there, and they are not connected.
            return {int(m) for m in re.findall(r":(\d+)\s+\S+:\*", text)}
        return {int(m) for m in re.findall(rf"{re.escape(AGENT)}:(\d+)\s+{re.escape(EDGE)}:{PORT}\b", text)}

    def drop(self, ports, transport):
        protocol = "udp" if transport == "quic" else "tcp"
        ports = "{ " + ", ".join(map(str, ports)) + " }"
        for name, which in ((self.a, "sport"), (self.b, "dport")):
            sh(*self.command(name, ["nft", f"add rule inet hole in {protocol} {which} {ports} drop"]))

    def end(self):
        for name in (self.a, self.b):
            subprocess.run(["ip", "netns", "delete", name], check=False)


class World:
    def __init__(self, dir, link, transport):
        self.dir, self.link = dir, link
        token = os.path.join(dir, "tokens")
        with open(token, "w") as f:
            f.write(run.TOKEN + "\n")
        args = [f"{run.BIN}/uniroute-edge", "serve", "--http", f"0.0.0.0:{PORT}", "--admin", "127.0.0.1:0", "--token-file", token,
                "--data-dir", os.path.join(dir, "data"), "--log-format", "json", "--log-level", "info"]
        if transport != "ws":
            args += ["--quic", f"0.0.0.0:{PORT}"]
        self.edge = run.Process(link.command(link.a, args), os.path.join(dir, "edge.log"))
        wait_for("edge", lambda: '"listening"' in self.edge.text() or '"admin":"' in self.edge.text())
        origin = subprocess.Popen(link.command(link.b, [sys.executable, "-c", ORIGIN]), stdout=subprocess.PIPE, text=True)
        self.origin, port = origin, origin.stdout.readline().strip()
        args = [f"{run.BIN}/uniroute", "http", port, "--server", f"http://{EDGE}:{PORT}", "--name", "demo", "--state-dir", os.path.join(dir, "state"),
                "--transport", transport, "--log-level", "info", "--log-format", "json", "--output", "json"]
        self.agent = run.Process(link.command(link.b, args), os.path.join(dir, "agent.log"), {"UNIROUTE_TOKEN": run.TOKEN})
        wait_for("agent", lambda: '"event":"ready"' in self.agent.text())

    def end(self):
        for process in (self.agent, self.edge):
            process.kill()
        self.origin.kill()
        self.origin.wait()


ORIGIN = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""

# A visitor in the edge's namespace: each answer's time on standard output.
VISITOR = f"""
import http.client, os, threading, time
def one():
    began = time.monotonic()
    try:
        c = http.client.HTTPConnection("127.0.0.1", {PORT}, timeout=40)
        c.request("GET", "/", headers={{"Host": "demo.localhost"}})
        r = c.getresponse(); r.read()
        what = r.status
    except Exception as error:
        what = type(error).__name__
    os.write(1, f"{{began:.3f}} {{time.monotonic():.3f}} {{what}}\\n".encode())
while True:
    threading.Thread(target=one, daemon=True).start()
    time.sleep(0.1)
"""


def answers(path):
    with open(path) as f:
        rows = [line.split() for line in f if line.endswith("\n")]
    return [(float(began), float(ended), status) for began, ended, status in rows]


def one_round(transport):
    link = Link()
    try:
        with tempfile.TemporaryDirectory() as dir:
            world = World(dir, link, transport)
            seen = os.path.join(dir, "answers")
            with open(seen, "wb") as out:
                visitor = subprocess.Popen(link.command(link.a, [sys.executable, "-c", VISITOR]), stdout=out)
            try:
                time.sleep(4)
                ports = link.ports(transport)
                assert ports, "no connection of the agent's is open"
                edge_lines = len(world.edge.text().splitlines())
                began = time.monotonic()
                link.drop(ports, transport)
                # The first request that began after the drop and got its answer.
                dropped = time.monotonic()
                first = wait_for("an answer over the next session", lambda: [a for a in answers(seen) if a[0] > dropped and a[2] == "200"], 60)
                replaced = min(a[1] for a in first) - began
                ended = lambda: [line for line in world.edge.text().splitlines()[edge_lines:] if re.search(r"session.*(ended|over|replaced|life)", line)]
                wait_for("the edge's end of the old session", ended, 60)
                edge_ended = time.monotonic() - began
                edge_says = ended()[0]
                time.sleep(2)
                failed = [a for a in answers(seen) if a[2] != "200"]
                return replaced, edge_ended, failed, world.agent.text() + edge_says
            finally:
                visitor.kill()
                visitor.wait()
                world.end()
    finally:
        link.end()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", default="release", choices=["release", "debug"])
    parser.add_argument("--transport", default="ws", choices=["ws", "quic"])
    parser.add_argument("--verbose", action="store_true", help="show the agent's log")
    args = parser.parse_args()
    run.BIN = os.path.join(os.path.dirname(run.BIN), args.profile)
    if os.geteuid() != 0:
        raise SystemExit("needs root, for network namespaces")
    times = []
    for _ in range(args.rounds):
        replaced, edge_ended, failed, log = one_round(args.transport)
        times.append(replaced)
        print(f"      answers again after {replaced:.2f} s, the edge ended the old session after {edge_ended:.2f} s, "
              f"{len(failed)} requests failed", flush=True)
        if args.verbose:
            print(log)
    report(f"black-holed link ({args.transport})", max(times) < BOUND, f"replaced after {', '.join(f'{t:.2f}' for t in times)} s, bound {BOUND:g} s")
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
