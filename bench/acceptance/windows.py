#!/usr/bin/env python3
"""The agent for Windows under Wine, against an edge of this machine.

    bench/acceptance/windows.py --exe FILE [--profile release|debug] [--wine PROGRAM]

Needs wine64, curl and the edge (cargo build --workspace --bins); scripts/check-windows.sh makes the agent. Wine is no
Windows: what it does not do is told as such. Its folder is a temporary one, and what runs in it is ended with it.
"""
import argparse, hashlib, multiprocessing, os, re, signal, subprocess, sys, tempfile, time, urllib.error, urllib.request

import restarts, run
from run import Process, report, wait_for

ENV = {"WINEARCH": "win64", "WINEDEBUG": "-all", "WINEDLLOVERRIDES": "mscoree,mshtml,winemenubuilder.exe="}
# What this machine's user has set is not for the agent.
UNSET = ("UNIROUTE_SERVER", "UNIROUTE_TOKEN", "UNIROUTE_CONFIG", "UNIROUTE_TOKEN_FILE", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy")

# Rust's programs take random numbers from a library of Windows 7 and later, which Wine has since 9 only.
PRNG = """
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID data, ULONG length);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T length) { return SystemFunction036(data, (ULONG)length); }
"""


class Windows:
    """A Wine of our own, with the agent in it."""

    def __init__(self, dir, exe, wine):
        self.dir, self.exe, self.wine, self.n = dir, os.path.abspath(exe), wine, 0
        self.env = {**os.environ, **ENV, "WINEPREFIX": os.path.join(dir, "wine")}
        for name in UNSET:
            self.env.pop(name, None)
        began = time.monotonic()
        subprocess.run([wine, "wineboot", "-i"], env=self.env, capture_output=True, timeout=300)
        print(f"      a new folder for Wine in {time.monotonic() - began:.0f} s", flush=True)
        library = os.path.join(dir, "wine/drive_c/windows/system32/bcryptprimitives.dll")
        if not os.path.exists(library):
            subprocess.run(["x86_64-w64-mingw32-gcc", "-shared", "-x", "c", "-", "-o", library, "-ladvapi32"], input=PRNG, text=True, check=True)
        users = os.path.join(dir, "wine/drive_c/users")
        self.home = os.path.join(users, next(name for name in os.listdir(users) if name != "Public"))

    def run(self, *args, input=""):
        return subprocess.run([self.wine, self.exe, *args], env=self.env, capture_output=True, text=True, input=input, timeout=60)

    def start(self, *args):
        self.n += 1
        out = open(os.path.join(self.dir, f"agent-{self.n}.log"), "wb")
        agent = Process.__new__(Process)
        agent.log, agent.out = out.name, out
        agent.p = subprocess.Popen([self.wine, self.exe, *args], env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        agent.pid = agent.p.pid
        return agent

    def end(self):
        # Of this folder only.
        server = os.path.join(os.path.dirname(os.path.realpath(self.wine)), "wineserver")
        server = server if os.path.exists(server) else "wineserver"
        subprocess.run([server, "-k"], env=self.env, capture_output=True, timeout=60)


def to_windows(path):
    return "Z:" + path.replace("/", "\\")


def get(port, name, path="/"):
    done = subprocess.run(["curl", "-s", "-m", "20", "--path-as-is", "-w", "\n%{http_code}", f"http://{name}.localhost:{port}{path}"], capture_output=True, text=True)
    body, _, status = done.stdout.rpartition("\n")
    return int(status or 0), body


def check_files(windows):
    seen = windows.run("--version")
    report("--version", seen.returncode == 0 and seen.stdout.startswith("uniroute "), seen.stdout.strip() + seen.stderr.strip())
    path = windows.run("config", "path").stdout.strip()
    report("config path", path.endswith(r"\AppData\Roaming\uniroute\uniroute.toml"), path)
    sample = to_windows(os.path.join(windows.dir, "sample.toml"))
    made, checked = windows.run("config", "init", sample), windows.run("config", "check", sample)
    report("config init, config check", (made.returncode, checked.returncode) == (0, 0), (checked.stdout + made.stderr + checked.stderr).strip())
    wrong = windows.run("http", "unix:/tmp/a.sock", "--server", "http://127.0.0.1:9")
    report("a Unix socket is refused", wrong.returncode != 0 and "Unix sockets" in wrong.stderr, wrong.stderr.strip())


def check_login(windows, server):
    seen = windows.run("login", "--server", server, input=run.TOKEN + "\r\n")
    token = os.path.join(windows.home, "AppData/Roaming/uniroute/token")
    stored = open(token).read().strip() if os.path.exists(token) else None
    report("login", seen.returncode == 0 and stored == run.TOKEN, (seen.stdout + seen.stderr).strip())


def check_http(windows, place):
    agent = windows.start("http", str(place.upstream), "--name", "demo", "--inspector", "127.0.0.1:0")
    wait_for("a tunnel", lambda: "ready http" in agent.text() or agent.p.poll() is not None, 30)
    status, body = get(place.port, "demo", "/x")
    report("a URL answers", status == 200, f"{status} {body[:60]!r}")
    body = os.urandom(1 << 20)
    request = urllib.request.Request(f"http://127.0.0.1:{place.port}/", body, {"Host": f"demo.localhost:{place.port}", "X-Digest": hashlib.sha256(body).hexdigest()})
    with urllib.request.urlopen(request, timeout=30) as answer:
        report("an upload of 1 MiB", answer.status == 200, answer.read().decode()[:60])
    ready = windows.run("ready", "--timeout", "10")
    report("ready finds it", ready.returncode == 0, (ready.stdout + ready.stderr).strip())
    shown = windows.run("status")
    report("status shows it", shown.returncode == 0 and "demo.localhost" in shown.stdout, (shown.stdout + shown.stderr).strip().splitlines()[0])
    agent.p.send_signal(signal.SIGINT)
    try:
        code = agent.p.wait(20)
    except subprocess.TimeoutExpired:
        code = None
        agent.kill()
    report("Ctrl-C drains", code == 0 and "draining" in agent.text(), f"exit code {code}")
    gone = windows.run("ready")
    report("it is not found any more", gone.returncode == 1 and "no agent runs" in gone.stderr, gone.stderr.strip())


def check_start(windows, place):
    site = os.path.join(windows.dir, "site")
    os.mkdir(site)
    for name, text in (("index.html", "of windows"), (".env", "SECRET=1"), ("longer-name.html", "long")):
        with open(os.path.join(site, name), "w") as f:
            f.write(text)
    config = os.path.join(windows.home, "AppData/Roaming/uniroute/uniroute.toml")
    with open(config) as f:
        before = f.read()

    def write(text):
        with open(config, "w") as f:
            f.write(before + text)

    folder = to_windows(site).replace("\\", "\\\\")
    write(f'\n[tunnels.site]\nname = "site"\nupstream = "file:{folder}"\n')
    agent = windows.start("start", "--all", "--inspector", "off")
    wait_for("a tunnel", lambda: "ready site" in agent.text() or agent.p.poll() is not None, 30)
    seen = {path: get(place.port, "site", path) for path in ("/", "/index.html", "/longer-name.html")}
    report("a folder is served", [answer[0] for answer in seen.values()] == [200] * 3, seen["/"][1])
    hidden = [get(place.port, "site", path)[0] for path in ("/index.html::$DATA", "/ENV~1", "/LONGER~1.HTM", "/..%5csample.toml", "/%2e%2e/sample.toml", "/.env", "/C:/windows/win.ini", "/NUL")]
    report("and nothing by its other names", hidden == [404] * len(hidden), f"{hidden}")
    write(f'\n[tunnels.site]\nname = "site"\nupstream = "file:{folder}"\n[tunnels.more]\nname = "more"\nupstream = "{place.upstream}"\n')
    wait_for("the change", lambda: get(place.port, "more")[0] == 200 or agent.p.poll() is not None, 20)
    report("a changed config file is read again", "reloaded" in agent.text(), next((line for line in agent.text().splitlines() if "reloaded" in line), "no word of it"))
    agent.kill(signal.SIGINT)


def check_service(windows):
    shown = windows.run("service", "install", "--dry-run")
    parts = ("<ExecutionTimeLimit>PT0S<", "<LogonTrigger>", "--config \"C:\\users\\", "schtasks.exe /Create /F /XML")
    report("service install --dry-run", all(part in shown.stdout for part in parts), (shown.stderr or shown.stdout.splitlines()[0]).strip())
    made = windows.run("service", "install")
    said = (made.stdout + made.stderr).strip().replace("\r", "").splitlines()
    print(f"      service install ends with {made.returncode}: {said}")
    if made.returncode == 0:
        gone = windows.run("service", "uninstall")
        print(f"      service uninstall ends with {gone.returncode}: {(gone.stdout + gone.stderr).strip().splitlines()}")


class Place:
    """An edge, and a local server."""

    def __init__(self, dir):
        self.port = run.free_port()
        tokens = os.path.join(dir, "tokens")
        with open(tokens, "w") as f:
            f.write(run.TOKEN + "\n")
        mine, theirs = multiprocessing.Pipe()
        self.server = multiprocessing.Process(target=restarts.origin, args=(theirs,), daemon=True)
        self.server.start()
        self.upstream = mine.recv()
        self.edge = Process([f"{run.BIN}/uniroute-edge", "serve", "--http", f"127.0.0.1:{self.port}", "--admin", "127.0.0.1:0", "--token-file", tokens,
                             "--data-dir", os.path.join(dir, "data"), "--log-format", "json"], os.path.join(dir, "edge.log"))
        wait_for("edge", lambda: '"admin":"' in self.edge.text())

    def end(self):
        self.edge.kill()
        self.server.kill()
        self.server.join()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--exe", required=True, help="uniroute.exe")
    parser.add_argument("--profile", default="release", help="of the edge")
    parser.add_argument("--wine", default="wine64")
    args = parser.parse_args()
    run.BIN = os.path.join(os.path.dirname(run.BIN), args.profile)
    with tempfile.TemporaryDirectory() as dir:
        place, windows = Place(dir), None
        try:
            windows = Windows(dir, args.exe, args.wine)
            check_files(windows)
            check_login(windows, f"http://127.0.0.1:{place.port}")
            check_http(windows, place)
            check_start(windows, place)
            check_service(windows)
        finally:
            if windows:
                windows.end()
            place.end()
    print(f"{len(run.failures)} failed" + (": " + ", ".join(run.failures) if run.failures else ""))
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
