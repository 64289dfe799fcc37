#!/usr/bin/env python3
"""A guard against slow drift: instructions that edge and agent need for one small request.

    bench/acceptance/instructions.py [--requests N]

Counted by valgrind's callgrind on the release binaries (cargo build --release --bins), user space
only, one keep-alive connection, one request after the other: the figure is the same on a busy
machine, to about one percent. The agent's inspector is off: what that costs is inspector.py's to see. It fails above BOUNDS. A change that is worth more instructions says
so in its commit and moves the bound.
"""
import argparse, http.client, os, re, signal, socket, subprocess, sys, tempfile, threading, time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release")
TOKEN = "acceptance-token-0123456789"
# Instructions for each request, user space: what was measured and some eight percent. Without rows of the request log:
# they are written off the way of requests, by default 1,000 a second whatever comes in, at some 7 µs each.
BOUNDS = {"edge": 33_500, "agent": 34_000}
BODY = b"u" * 1024


def wait_for(what, condition, bound=60.0):
    end = time.monotonic() + bound
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise SystemExit(f"{what}: not within {bound} s")


def origin(listener):
    """Answers 1 KiB to each request, on any number of connections."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 1024\r\n\r\n" + BODY

    def serve(connection):
        pending = b""
        while data := connection.recv(65536):
            pending += data
            while b"\r\n\r\n" in pending:
                pending = pending.split(b"\r\n\r\n", 1)[1]
                connection.sendall(answer)

    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


class Counted:
    """A process under callgrind."""

    def __init__(self, name, dir, args, env=None):
        self.name, self.dir, self.log = name, dir, os.path.join(dir, f"{name}.log")
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={dir}/{name}.cg", *args]
        self.process = subprocess.Popen(command, cwd=dir, stdout=open(self.log, "wb"), stderr=subprocess.STDOUT,
                                        env={**os.environ, **(env or {})})

    def text(self):
        with open(self.log, errors="replace") as log:
            return log.read()

    def control(self, what):
        subprocess.run(["callgrind_control", what, str(self.process.pid)], check=True, stdout=subprocess.DEVNULL, cwd=self.dir)

    def dumped(self):
        dump = os.path.join(self.dir, f"{self.name}.cg.1")
        wait_for(f"counts of the {self.name}", lambda: os.path.exists(dump) and "totals:" in open(dump).read())
        with open(dump) as f:
            return int(re.search(r"^totals: (\d+)", f.read(), re.M).group(1))

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def requests(connection, host, count):
    for _ in range(count):
        connection.request("GET", "/1k", headers={"Host": host})
        answer = connection.getresponse()
        assert answer.status == 200 and answer.read() == BODY


def measure(listener, count, *arguments):
    """Instructions of edge and agent for each request; `arguments` are further ones of the agent."""
    arguments = arguments or ("--inspector", "off")
    with tempfile.TemporaryDirectory() as dir:
        with open(f"{dir}/tokens", "w") as f:
            f.write(TOKEN + "\n")
        with open(f"{dir}/edge.toml", "w") as f:
            f.write("version = 1\n[request_log]\nrows_per_second = 0\n")
        edge = Counted("edge", dir, [f"{BIN}/uniroute-edge", "serve", "--config", "edge.toml", "--http", "127.0.0.1:0", "--admin", "off",
                                     "--quic", "off", "--workers", "1", "--token-file", "tokens", "--data-dir", "data",
                                     "--log-format", "json"])
        agent = None
        try:
            port = int(wait_for("edge", lambda: re.search(r'"http":"127.0.0.1:(\d+)"', edge.text())).group(1))
            agent = Counted("agent", dir, [f"{BIN}/uniroute", "http", f"127.0.0.1:{listener.getsockname()[1]}", "--server",
                                           f"http://127.0.0.1:{port}", "--state-dir", dir, "--name", "demo", "--output", "json",
                                           "--transport", "ws", *arguments], {"UNIROUTE_TOKEN": TOKEN})
            wait_for("agent", lambda: '"event":"ready"' in agent.text())
            visitor, host = http.client.HTTPConnection("127.0.0.1", port), f"demo.localhost:{port}"
            requests(visitor, host, 300)
            for process in (edge, agent):
                process.control("-z")
            requests(visitor, host, count)
            for process in (edge, agent):
                process.control("-d")
            return {process.name: process.dumped() / count for process in (edge, agent)}
        finally:
            for process in (agent, edge):
                if process:
                    process.end()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=1000)
    count = parser.parse_args().requests
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=origin, args=(listener,), daemon=True).start()
    seen = measure(listener, count)
    for name, each in seen.items():
        print(f"{'FAIL' if each > BOUNDS[name] else 'PASS'}  {name}: {each:,.0f} instructions for each request (bound {BOUNDS[name]:,})")
    return any(each > BOUNDS[name] for name, each in seen.items())


if __name__ == "__main__":
    sys.exit(main())
