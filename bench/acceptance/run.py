#!/usr/bin/env python3
"""What the product promises, seen on the release build: one check a promise, each prints what it saw.

    bench/acceptance/run.py [--only NAME,…] [--events SECONDS]

Needs the release binaries (cargo build --release --workspace --bins --example demo_site) and curl.
Every server and client is this machine's own, on loopback, and is ended by pid.
"""
import argparse, http.client, json, os, re, resource, signal, socket, statistics, subprocess, sys, tempfile, threading, time, urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release")
GIB = 1 << 30
MIB = 1 << 20
TOKEN = "acceptance-token-0123456789"
failures = []


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(what, condition, bound=20.0, every=0.02):
    end = time.monotonic() + bound
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(every)
    raise SystemExit(f"{what}: not within {bound} s")


def report(name, ok, seen):
    print(f"{'PASS' if ok else 'FAIL'}  {name}: {seen}", flush=True)
    if not ok:
        failures.append(name)


def status_field(pid, field):
    with open(f"/proc/{pid}/status") as f:
        return int(re.search(rf"^{field}:\s+(\d+)", f.read(), re.M).group(1)) * 1024


def fds(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


class Process:
    def __init__(self, args, log, env=None):
        self.log = log
        self.out = open(log, "wb")
        self.p = subprocess.Popen(args, stdout=self.out, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})
        self.pid = self.p.pid

    def text(self):
        with open(self.log, errors="replace") as f:
            return f.read()

    def kill(self, sig=signal.SIGKILL):
        if self.p.poll() is None:
            self.p.send_signal(sig)
        self.p.wait()


class World:
    """A local server, an edge and an agent."""

    def __init__(self, dir, upstream=None, edge_port=None, server=None):
        self.dir, self.n = dir, 0
        self.tokens = os.path.join(dir, "tokens")
        with open(self.tokens, "w") as f:
            f.write(TOKEN + "\n")
        self.site = None
        if upstream is None:
            self.site = self.process([f"{BIN}/examples/demo_site", "--listen", "127.0.0.1:0"])
            upstream = "127.0.0.1:" + wait_for("site", lambda: re.search(r"listening http://127.0.0.1:(\d+)", self.site.text())).group(1)
        self.upstream = upstream
        self.port = edge_port or free_port()
        self.start_edge()
        self.server = server or f"http://127.0.0.1:{self.port}"
        self.agent = self.start_agent()

    def process(self, args, env=None):
        self.n += 1
        return Process(args, os.path.join(self.dir, f"{self.n}.log"), env)

    def start_edge(self):
        self.edge = self.process([f"{BIN}/uniroute-edge", "serve", "--http", f"127.0.0.1:{self.port}", "--admin", "127.0.0.1:0",
                                  "--token-file", self.tokens, "--data-dir", os.path.join(self.dir, "data"), "--log-format", "json"])
        found = wait_for("edge", lambda: re.search(r'"admin":"([^"]+)"', self.edge.text()))
        self.admin = found.group(1)

    def start_agent(self, name="demo"):
        agent = self.process([f"{BIN}/uniroute", "http", self.upstream, "--server", self.server, "--state-dir", os.path.join(self.dir, "state"),
                              "--name", name, "--output", "json"], {"UNIROUTE_TOKEN": TOKEN})
        wait_for("agent", lambda: '"event":"ready"' in agent.text(), every=0.005)
        return agent

    def url(self, path):
        return f"http://demo.localhost:{self.port}{path}"

    def host(self):
        return f"demo.localhost:{self.port}"

    def metric(self, name):
        text = urllib.request.urlopen(f"http://{self.admin}/metrics").read().decode()
        return float(re.search(rf"^uniroute_edge_{name} (\S+)", text, re.M).group(1))

    def status(self):
        return json.load(urllib.request.urlopen(f"http://{self.admin}/debug/status"))

    def peaks(self):
        return status_field(self.edge.pid, "VmHWM") / MIB, status_field(self.agent.pid, "VmHWM") / MIB

    def raw(self, request):
        s = socket.create_connection(("127.0.0.1", self.port))
        s.sendall(request.replace("HOST", self.host()).encode())
        return s

    def end(self):
        for p in (self.agent, self.edge, self.site):
            if p:
                p.kill()


def latencies(world, seconds, path="/headers", connections=4):
    """Times of small requests on keep-alive connections, in ms."""
    all_times, end = [], time.monotonic() + seconds

    def one():
        c, times = http.client.HTTPConnection("127.0.0.1", world.port), []
        while time.monotonic() < end:
            t = time.perf_counter()
            c.request("GET", path, headers={"Host": world.host()})
            r = c.getresponse()
            r.read()
            assert r.status == 200, r.status
            times.append((time.perf_counter() - t) * 1e3)
        all_times.extend(times)

    threads = [threading.Thread(target=one) for _ in range(connections)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return sorted(all_times)


def p(times, q):
    return times[min(len(times) - 1, int(len(times) * q))]


def shell(command):
    return subprocess.run(command, shell=True, capture_output=True, text=True).stdout.strip()


def check_bodies(dir, _):
    w = World(dir)
    big = os.path.join(dir, "big")
    shell(f"head -c {GIB} /dev/urandom > {big}")
    want = shell(f"sha256sum < {big}").split()[0]
    page = shell(f"curl -s {w.url('/')} | head -c 15")
    report("page", page.lower().startswith("<!doctype html"), repr(page))
    got = json.loads(shell(f"curl -s -X POST -T {big} {w.url('/upload')}"))
    report("upload 1 GiB", got["sha256"] == want and got["size"] == GIB, f"sha256 {got['sha256'][:16]}… of {got['size']} bytes")
    got = shell(f"curl -s -X POST -T {big} {w.url('/echo')} | sha256sum").split()[0]
    report("upload 1 GiB and back", got == want, f"sha256 {got[:16]}…")
    size = int(shell(f"curl -s {w.url(f'/bytes/{GIB}')} | wc -c"))
    report("download 1 GiB", size == GIB, f"{size} bytes")
    edge, agent = w.peaks()
    report("peak RSS after 1 GiB each way", max(edge, agent) < 64, f"edge {edge:.1f} MiB, agent {agent:.1f} MiB")
    w.end()


def check_stalled_reader(dir, _):
    w = World(dir)
    before = latencies(w, 5)
    s = w.raw(f"GET /bytes/{GIB} HTTP/1.1\r\nHost: HOST\r\n\r\n")
    read = 0
    while read < 4 * MIB:
        read += len(s.recv(65536))
    during = latencies(w, 30)
    edge, agent = w.peaks()
    report("reader stalls 30 s in a 1 GiB download: RSS", max(edge, agent) < 64, f"edge {edge:.1f} MiB, agent {agent:.1f} MiB")
    report("… other requests", p(during, 0.99) < 2 * p(before, 0.99) + 1, f"p50 {p(before, .5):.2f} -> {p(during, .5):.2f} ms, p99 {p(before, .99):.2f} -> {p(during, .99):.2f} ms")
    while chunk := s.recv(1 << 20):
        read += len(chunk)
        if read > GIB:
            break
    report("… and then reads on to the end", read > GIB, f"{read} bytes with head")
    edge, agent = w.peaks()
    report("… RSS at the end", max(edge, agent) < 64, f"edge {edge:.1f} MiB, agent {agent:.1f} MiB")
    w.end()


class Origin:
    """A local server made of one function for each connection."""

    def __init__(self, serve):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self.run, args=(serve,), daemon=True).start()

    def run(self, serve):
        while True:
            c, _ = self.listener.accept()
            threading.Thread(target=serve, args=(c,), daemon=True).start()


def check_leaving(dir, _):
    seen = {}

    def serve(c):
        head = b""
        while b"\r\n\r\n" not in head:
            got = c.recv(65536)
            if not got:
                return
            head += got
        kind = "down" if head.startswith(b"GET") else "up"
        try:
            if kind == "down":
                c.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000000\r\n\r\n")
                while True:
                    c.sendall(b"x" * 65536)
            else:
                while c.recv(65536):
                    pass
        except OSError:
            pass
        seen[kind] = time.monotonic()

    w = World(dir, Origin(serve).address)
    s = w.raw("GET /x HTTP/1.1\r\nHost: HOST\r\n\r\n")
    for _ in range(50):
        s.recv(65536)
    s.close()
    left = time.monotonic()
    wait_for("close of the download", lambda: "down" in seen, 10)
    report("visitor leaves in mid-download", seen["down"] - left < 1, f"local server saw it after {(seen['down'] - left) * 1e3:.1f} ms")
    s = w.raw("POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 100000000000\r\n\r\n")
    for _ in range(50):
        s.sendall(b"x" * 65536)
    s.close()
    left = time.monotonic()
    wait_for("close of the upload", lambda: "up" in seen, 10)
    report("visitor leaves in mid-upload", seen["up"] - left < 1, f"local server saw it after {(seen['up'] - left) * 1e3:.1f} ms")
    w.end()


def check_dying(dir, _):
    def serve(c):
        head = c.recv(65536)
        if not head:
            return
        if b"/length" in head:
            c.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 1000)
        else:
            c.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3e8\r\n" + b"x" * 1000 + b"\r\n")
        time.sleep(0.2)
        c.close()

    w = World(dir, Origin(serve).address)
    for path, code in (("/length", 18), ("/chunked", 18)):
        done = subprocess.run(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", w.url(path)], capture_output=True, text=True)
        report(f"local server dies in mid-body ({path[1:]})", done.returncode == code, f"curl ends with {done.returncode} (18 is a partial file), {done.stdout}")
    w.end()


def check_events(dir, args):
    w = World(dir)
    s = w.raw("GET /events HTTP/1.1\r\nHost: HOST\r\n\r\n").makefile("rb")
    lags, arrivals = [], []
    end = time.monotonic() + args.events
    for line in s:
        if b"unix_ms" in line:
            sent = json.loads(line[line.index(b"{"):])["unix_ms"]
            lags.append(time.time() * 1e3 - sent)
            arrivals.append(sent)
            if time.monotonic() > end:
                break
    beyond = max(b - a for a, b in zip(lags, lags[1:]))
    report(f"event stream of {args.events} s", beyond < 100 and len(lags) >= args.events * 0.95,
           f"{len(lags)} events; largest gap beyond the sender's own {beyond:.1f} ms; lag {min(lags):.1f} to {max(lags):.1f} ms")
    w.end()


def check_kill_agent(dir, _):
    w = World(dir)
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{w.port}/headers", headers={"Host": w.host()})).read()
    look = lambda: (status_field(w.edge.pid, "VmRSS") / MIB, w.metric("tasks"), fds(w.edge.pid))
    for _ in range(5):
        w.agent.kill()
        w.agent = w.start_agent()
    wait_for("old sessions gone", lambda: w.metric("sessions") == 1)
    before, times = look(), []
    for _ in range(100):
        w.agent.kill()
        t = time.monotonic()
        w.agent = w.start_agent()
        times.append((time.monotonic() - t) * 1e3)
        r = urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{w.port}/headers", headers={"Host": w.host()}))
        assert r.status == 200
    wait_for("old sessions gone", lambda: w.metric("sessions") == 1)
    after = look()
    flat = after[0] - before[0] < 2 and after[1] <= before[1] + 1 and after[2] <= before[2] + 1
    report("kill -9 of the agent, 100 times", flat,
           f"name taken back 100 times, ready after {statistics.median(times):.0f} ms (longest {max(times):.0f}); edge RSS, tasks, descriptors {before} -> {after}")
    times = []
    for down in (0.2, 1, 3, 8):
        w.edge.kill()
        time.sleep(down)
        w.start_edge()
        t = time.monotonic()

        def back():
            try:
                r = urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{w.port}/headers", headers={"Host": w.host()}))
                return r.status == 200
            except OSError:
                return False

        wait_for("agent back", back)
        times.append(time.monotonic() - t)
    report("kill -9 of the edge", max(times) < 2, f"agent back after {', '.join(f'{t:.2f}' for t in times)} s (edge away for 0.2, 1, 3 and 8 s)")
    w.end()


def rate(port, host, size):
    s = socket.create_connection(("127.0.0.1", port))
    s.sendall(f"GET /bytes/{size} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    t, read = time.monotonic(), 0
    while read < size:
        got = s.recv(1 << 20)
        if not got:
            raise SystemExit("cut")
        read += len(got)
    return read / (time.monotonic() - t) / 1e6


def check_round_trip(dir, _):
    for mbit in (400, 1200):
        origin = Process([f"{BIN}/uniroute-bench", "origin"], os.path.join(dir, "origin.log"))
        address = "127.0.0.1:" + wait_for("origin", lambda: re.search(r"listening 127.0.0.1:(\d+)", origin.text())).group(1)

        def link(to, n):
            process = Process([f"{BIN}/uniroute-bench", "link", "--to", to, "--delay-ms", "20", "--mbit", str(mbit)], os.path.join(dir, f"link{n}.log"))
            port = int(wait_for("link", lambda: re.search(r"listening 127.0.0.1:(\d+)", process.text())).group(1))
            return process, port

        plain, plain_port = link(address, 1)
        edge_port = free_port()
        far, far_port = link(f"127.0.0.1:{edge_port}", 2)
        w = World(dir, address, edge_port, f"http://127.0.0.1:{far_port}")
        size = mbit * 1_000_000 // 8 * 8
        rates = [(rate(plain_port, "x", size), rate(w.port, w.host(), size)) for _ in range(3)]
        direct, tunnel = (statistics.median(r[i] for r in rates) for i in (0, 1))
        report(f"one download at 40 ms and {mbit} Mbit/s", tunnel >= 0.9 * direct, f"{tunnel:.1f} MB/s, plain TCP {direct:.1f} MB/s: {tunnel / direct:.3f}")
        w.end()
        for process in (plain, far, origin):
            process.kill()


def check_stalled_downloads(dir, _):
    w = World(dir)
    before = latencies(w, 8)
    rss = status_field(w.edge.pid, "VmRSS"), status_field(w.agent.pid, "VmRSS")
    stalled = []
    for _ in range(64):
        s = w.raw(f"GET /bytes/{GIB} HTTP/1.1\r\nHost: HOST\r\n\r\n")
        s.recv(1000)
        stalled.append(s)
    during = latencies(w, 8)
    session = w.status()["sessions"][0]
    edge, agent = (status_field(x.pid, "VmRSS") for x in (w.edge, w.agent))
    granted = session["window_bytes"]
    report("64 stopped readers: others", p(during, 0.99) <= 1.3 * p(before, 0.99) + 0.5,
           f"p50 {p(before, .5):.2f} -> {p(during, .5):.2f} ms, p99 {p(before, .99):.2f} -> {p(during, .99):.2f} ms")
    report("… RSS within 4 x the granted windows", edge + agent < 4 * granted,
           f"edge {edge / MIB:.1f} + agent {agent / MIB:.1f} MiB (before {rss[0] / MIB:.1f} + {rss[1] / MIB:.1f}), granted {granted / MIB:.1f} MiB, queued at the edge {session['received_queued_bytes'] / MIB:.1f} MiB")
    w.end()


def check_idle_agents(dir, _):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(10_000, hard - 200)
    w = World(dir)
    latencies(w, 1)
    before = status_field(w.edge.pid, "VmRSS")
    crowd = w.process([f"{BIN}/uniroute-bench", "agents", "--server", w.server, "--token-file", w.tokens, "--count", str(count)])
    took = wait_for(f"{count} agents", lambda: re.search(rf"ready {count} in (\S+) s", crowd.text()), 60).group(1)
    each = (status_field(w.edge.pid, "VmRSS") - before) / count / 1024
    there = w.metric("sessions") == count + 1
    report(f"{count} idle agents", there and each <= 12, f"{each:.1f} KiB of RSS each at the edge ({before / MIB:.1f} MiB before), connected in {took} s")
    crowd.kill()
    wait_for("they are gone", lambda: w.metric("sessions") == 1, 30)
    w.end()


CHECKS = [check_bodies, check_stalled_reader, check_leaving, check_dying, check_kill_agent, check_round_trip, check_stalled_downloads, check_idle_agents, check_events]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--events", type=int, default=300, help="seconds of the event stream")
    args = parser.parse_args()
    only = [f"check_{name}" for name in args.only.split(",") if name]
    for check in CHECKS:
        if not only or check.__name__ in only:
            with tempfile.TemporaryDirectory() as dir:
                check(dir, args)
    print(f"{len(failures)} failed" + (": " + ", ".join(failures) if failures else ""))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
