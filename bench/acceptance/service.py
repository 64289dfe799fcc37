#!/usr/bin/env python3
"""`uniroute service` under a real systemd: what it installs starts, is ready when it serves, and stays.

    bench/acceptance/service.py [--profile release|debug] [--rate N] [--times N]

Needs root, systemd, overlayfs, the unified cgroup hierarchy, and the binaries (cargo build --workspace --bins). A machine
without them is told, and nothing is checked. The systemd that is used is one of our own: process 1 of its own namespaces,
over a copy of this machine's root that is gone afterwards. It shares the network only, and does nothing to it. All of it
is ended by pid.
"""
import argparse, asyncio, multiprocessing, os, re, shutil, signal, subprocess, sys, tempfile, time

import restarts, run
from run import Process, p, report, wait_for

SYSTEMD = "/lib/systemd/systemd"
CGROUPS = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
# Of the units that a machine starts with, only these: nothing here may touch the network or the kernel.
UNITS = ["systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald.service", "systemd-tmpfiles-setup.service"]
BOOT = r"""
set -eu
W=$1 UNITS=$2
mount --make-rprivate /
mount -t tmpfs tmpfs $W
mkdir $W/up $W/work $W/root
R=$W/root
mount -t overlay overlay -o lowerdir=/,upperdir=$W/up,workdir=$W/work $R
mount -t proc proc $R/proc
mount --bind $R/proc/sys $R/proc/sys
mount -o remount,bind,ro $R/proc/sys
mount --rbind /dev $R/dev
mount -t sysfs -o ro sysfs $R/sys
mount -t cgroup2 cgroup2 $R/sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs $R/run
mount -t tmpfs -o mode=1777 tmpfs $R/tmp
cd $R
rm -rf etc/systemd/system/*.wants etc/systemd/system/uniroute* etc/uniroute root/.config
rm -rf lib/systemd/system/*.wants var/lib/uniroute* var/lib/private
mkdir -p lib/systemd/system/sysinit.target.wants
for unit in $UNITS; do ln -s ../$unit lib/systemd/system/sysinit.target.wants/$unit; done
grep -q '^ann:' etc/passwd || echo 'ann:x:4711:4711::/home/ann:/bin/sh' >>etc/passwd
grep -q '^ann:' etc/group || echo 'ann:x:4711:' >>etc/group
mkdir -p .old home/ann run/user/4711
chown 4711:4711 home/ann run/user/4711
chmod 700 run/user/4711
pivot_root . .old
umount -l .old
# As systemd itself does on a machine; its credentials need it.
mount --make-rshared /
exec env -i container=uniroute PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=multi-user.target --log-level=info --log-target=console --show-status=no
"""
ANN = ["setpriv", "--reuid=4711", "--regid=4711", "--clear-groups", "env", "HOME=/home/ann", "XDG_RUNTIME_DIR=/run/user/4711"]


def missing():
    """Why it can't be done here, if it can't."""
    if os.getuid() != 0:
        return "it has to be root"
    for program in (SYSTEMD, "/usr/bin/python3", "unshare", "nsenter", "setpriv", "systemctl"):
        if not shutil.which(program):
            return f"there is no {program}"
    with open("/proc/filesystems") as f:
        known = f.read().split()
    for kind in ("overlay", "cgroup2"):
        if kind not in known:
            return f"the kernel has no {kind}"
    if not any(os.path.exists(f"{path}/cgroup.procs") and os.access(path, os.W_OK) for path in CGROUPS):
        return "there is no unified cgroup hierarchy"
    tried = subprocess.run(["unshare", "--pid", "--mount", "--uts", "--ipc", "--cgroup", "--fork", "--mount-proc", "true"], capture_output=True, text=True)
    return tried.stderr.strip() or None


class Machine:
    """A systemd in namespaces of its own."""

    def __init__(self, dir):
        self.cgroup = next(path for path in CGROUPS if os.path.exists(f"{path}/cgroup.procs")) + f"/uniroute-{os.getpid()}"
        self.pid, self.outer = None, None
        os.mkdir(self.cgroup)
        root = os.path.join(dir, "machine")
        os.mkdir(root)
        enter = f'echo $$ >{self.cgroup}/cgroup.procs; exec unshare --pid --mount --uts --ipc --cgroup --fork --kill-child=KILL sh -c "$0" sh "$@"'
        self.outer = Process(["sh", "-c", enter, BOOT, root, " ".join(UNITS)], os.path.join(dir, "machine.log"))
        self.pid = wait_for("its first process", self.first)
        wait_for("systemd", lambda: self.ended() or self.has("systemctl", "is-active", "multi-user.target"), 30)
        if self.ended():
            raise SystemExit("systemd has not come up:\n" + self.outer.text())

    def ended(self):
        return self.outer.p.poll() is not None

    def first(self):
        if self.ended():
            raise SystemExit("systemd has not come up:\n" + self.outer.text())
        with open(f"/proc/{self.outer.pid}/task/{self.outer.pid}/children") as f:
            return next(iter(f.read().split()), None)

    def run(self, *args, input=None):
        inside = ["nsenter", "-t", self.pid, "-m", "-u", "-i", "-p", "-C", "env", "-i", "HOME=/root", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
        return subprocess.run([*inside, *args], capture_output=True, text=True, input=input, timeout=60)

    def out(self, *args, **how):
        done = self.run(*args, **how)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(args)}: {done.returncode}\n{done.stdout}{done.stderr}\n{self.log()}")
        return done.stdout

    def has(self, *args):
        return self.run(*args).returncode == 0

    def write(self, path, text, mode="644", owner="0:0"):
        self.out("sh", "-c", f"mkdir -p $(dirname {path}) && cat >{path} && chmod {mode} {path} && chown {owner} {path}", input=text)

    def install(self, program, path):
        with open(program, "rb") as f:
            done = subprocess.run(["nsenter", "-t", self.pid, "-m", "sh", "-c", f"cat >{path} && chmod 755 {path}"], stdin=f)
        assert done.returncode == 0

    def log(self):
        return self.run("journalctl", "--no-pager", "-n", "60", "-t", "uniroute", "-t", "systemd").stdout

    def end(self):
        if self.pid and not self.ended():
            os.kill(int(self.pid), signal.SIGKILL)
        if self.outer:
            self.outer.kill(signal.SIGTERM)
        for folder, _, _ in os.walk(self.cgroup, topdown=False):
            wait_for("an empty group", lambda: gone(folder), 5)


def gone(folder):
    try:
        os.rmdir(folder)
        return True
    except FileNotFoundError:
        return True
    except OSError:
        return False


class Unit:
    """A service of the system's, or of a user's."""

    def __init__(self, machine, name="uniroute", user=False):
        self.machine, self.name = machine, name
        self.as_user = ANN if user else []
        self.manager = ["systemctl"] + (["--user"] if user else [])
        self.named = [] if name == "uniroute" else ["--name", name[len("uniroute-"):]]

    def uniroute(self, *args, check=True):
        done = self.machine.run(*self.as_user, "uniroute", *args)
        if check and done.returncode != 0:
            raise SystemExit(f"uniroute {' '.join(args)}: {done.returncode}\n{done.stdout}{done.stderr}\n{self.machine.log()}")
        return done

    def service(self, action, *args, **how):
        return self.uniroute("service", action, *self.named, *args, **how)

    def show(self, field):
        return self.machine.out(*self.as_user, *self.manager, "show", "-P", field, self.name).strip()

    def state(self):
        return self.show("ActiveState")

    def is_active(self):
        return self.state() == "active"

    def pid(self):
        return self.show("MainPID")


class Place:
    """An edge outside, and a local server."""

    def __init__(self, dir):
        self.dir, self.edge, self.n = dir, None, 0
        self.port = run.free_port()
        self.tokens = os.path.join(dir, "tokens")
        with open(self.tokens, "w") as f:
            f.write(run.TOKEN + "\n")
        mine, theirs = multiprocessing.Pipe()
        self.server = multiprocessing.Process(target=restarts.origin, args=(theirs,), daemon=True)
        self.server.start()
        self.upstream = mine.recv()

    def start_edge(self):
        self.n += 1
        self.edge = Process([f"{run.BIN}/uniroute-edge", "serve", "--http", f"127.0.0.1:{self.port}", "--admin", "127.0.0.1:0", "--token-file", self.tokens,
                             "--data-dir", os.path.join(self.dir, "data"), "--log-format", "json"], os.path.join(self.dir, f"edge-{self.n}.log"))
        wait_for("edge", lambda: '"admin":"' in self.edge.text())

    def get(self, name, path="/"):
        done = subprocess.run(["curl", "-s", "-m", "20", "-w", "\n%{http_code}", f"http://{name}.localhost:{self.port}{path}"], capture_output=True, text=True)
        body, _, status = done.stdout.rpartition("\n")
        return int(status or 0), body

    def config(self, token, tunnels, more=""):
        head = f'version = 1\n[agent]\nserver = "http://127.0.0.1:{self.port}"\ntoken_file = "{token}"\n{more}\n'
        return head + "".join(f'[tunnels.{key}]\nname = "{key}"\nupstream = "{upstream}"\n' for key, upstream in tunnels.items())

    def end(self):
        if self.edge:
            self.edge.kill()
        self.server.kill()
        self.server.join()


def check_readiness(machine, place):
    """Installed while its edge is away: it starts, waits, says why, and is ready once it serves."""
    unit = Unit(machine)
    machine.write("/srv/site/index.html", "of the system")
    machine.write("/home/ann/site/index.html", "of ann", owner="4711:4711")
    tunnels = {"demo": place.upstream, "site": "file:/srv/site", "ann": "file:/home/ann/site"}
    machine.write("/root/token", run.TOKEN + "\n", "600")
    machine.write("/etc/uniroute/uniroute.toml", place.config("/root/token", tunnels, "[agent.inspector]\nspool = true"))
    said = unit.service("install", "--config", "/etc/uniroute/uniroute.toml").stdout
    report("install", "uniroute runs" in said and unit.show("UnitFileState") == "enabled", said.splitlines()[0])
    wait_for("a word of it", lambda: "not connected" in unit.show("StatusText"))
    status = unit.service("status", check=False).stdout
    report("without an edge it is not ready", unit.state() == "activating" and "not connected" in status, f"{unit.state()}: {unit.show('StatusText')}")
    place.start_edge()
    wait_for("it to be active", unit.is_active, 30)
    status, _ = place.get("demo")
    report("active means served", status == 200, f"the first request after it: {status}; {unit.show('StatusText')}")
    token = machine.out("stat", "-c", "%a %u", "/etc/uniroute/uniroute.token").split()
    line = machine.out("cat", f"/proc/{unit.pid()}/cmdline").replace("\0", " ")
    shown = machine.out("cat", "/etc/systemd/system/uniroute.service") + line + machine.out("cat", f"/proc/{unit.pid()}/environ")
    report("its token is its own", token == ["600", "0"] and run.TOKEN not in shown, f"mode {token[0]}, and neither in the unit, its command line nor its environment")
    user = machine.out("stat", "-c", "%u", f"/proc/{unit.pid()}").strip()
    bodies = [place.get(name)[1] for name in ("site", "ann")]
    report("folders are served by a user of its own", bodies == ["of the system", "of ann"] and int(user) > 60000, f"user {user}: {bodies}")
    body = os.path.join(place.dir, "body")
    with open(body, "wb") as f:
        f.write(os.urandom(1 << 20))
    subprocess.run(["curl", "-s", "-o", "/dev/null", "-H", "X-Digest: x", "--data-binary", f"@{body}", f"http://demo.localhost:{place.port}/"])
    files = machine.out("sh", "-c", "ls -l /var/lib/uniroute/spool/*/ | awk '{ print $5 }'").split()
    report("it spools into its state", str(1 << 20) in files, f"files of {files} bytes in /var/lib/uniroute/spool")
    known = machine.run("env", "UNIROUTE_STATE_DIR=/var/lib/uniroute", "uniroute", "ready", "--timeout", "5")
    report("root asks it", known.returncode == 0, known.stdout.strip().replace("\n", "; ") + known.stderr.strip())
    return unit


def check_restarts(machine, place, unit, args):
    """Restarted under load."""
    restarts.HOST, restarts.PORT = f"demo.localhost:{place.port}", place.port
    pids, took = {unit.pid()}, []

    def again():
        before, began = unit.pid(), time.monotonic()
        unit.service("restart")
        wait_for("the next one", lambda: unit.is_active() and unit.pid() not in ("0", before), 60)
        took.append((time.monotonic() - began) * 1e3)
        pids.add(unit.pid())

    async def all_of_it():
        loading = asyncio.create_task(restarts.load(args.times * 4, args.rate))
        for _ in range(args.times):
            await asyncio.sleep(1)
            await asyncio.to_thread(again)
        return await loading

    seen = asyncio.run(all_of_it())
    failed = dict(seen.failed)
    report("restart loses no request", not failed and len(pids) == args.times + 1, f"{sum(failed.values())} of {seen.asked} {failed or ''}, {args.times} restarts, active again after {max(took):.0f} ms")
    machine.write("/etc/uniroute/uniroute.toml", place.config("/root/token", {"demo": place.upstream, "more": "file:/srv/site"}))
    before = unit.pid()
    machine.out("systemctl", "reload", unit.name)
    wait_for("the tunnel", lambda: place.get("more")[0] == 200)
    report("reload", unit.pid() == before and unit.is_active(), f"a new tunnel is served by the same process: {unit.show('StatusText')}")


def check_watchdog(machine, place, unit):
    """A process that hangs, or dies."""
    machine.write(f"/etc/systemd/system/{unit.name}.service.d/quick.conf", "[Service]\nWatchdogSec=3\n")
    machine.out("systemctl", "daemon-reload")
    machine.out("systemctl", "restart", unit.name)
    wait_for("it to be active", unit.is_active, 30)
    time.sleep(4)
    before = unit.pid()
    report("a watchdog of 3 s is content", unit.show("NRestarts") == "0" and unit.is_active(), f"process {before} is alive after 4 s")
    machine.out("kill", "-STOP", before)
    began = time.monotonic()
    wait_for("another process", lambda: unit.pid() not in ("0", before) and unit.is_active(), 90)
    took, status = time.monotonic() - began, place.get("demo")[0]
    report("one that hangs is begun anew", status == 200, f"serves again {took:.1f} s after SIGSTOP ({unit.show('Result')})")
    before = unit.pid()
    machine.out("kill", "-KILL", before)
    began = time.monotonic()
    wait_for("another process", lambda: unit.pid() not in ("0", before) and unit.is_active(), 60)
    report("one that dies is begun anew", place.get("demo")[0] == 200, f"serves again after {time.monotonic() - began:.1f} s")


def check_end(machine, place, unit):
    """Stopped, started, wrong, gone."""
    unit.service("stop")
    report("stop", unit.state() == "inactive" and unit.show("Result") == "success", f"{unit.state()}, {unit.show('Result')}")
    machine.write("/etc/uniroute/uniroute.toml", "version = 1\nnonsense = 1\n")
    unit.service("start")
    wait_for("the end", lambda: unit.state() == "failed")
    report("a wrong config is not tried for ever", unit.show("NRestarts") == "0", f"{unit.state()} with exit code {unit.show('ExecMainStatus')}, {unit.show('NRestarts')} restarts")
    machine.write("/etc/uniroute/uniroute.toml", place.config("/root/token", {"demo": place.upstream}))
    unit.service("start")
    wait_for("it to be active", unit.is_active, 30)
    unit.service("uninstall")
    left = machine.out("sh", "-c", "ls -d /etc/systemd/system/uniroute.service /etc/uniroute/uniroute.token /etc/systemd/system/*.wants/uniroute.service 2>/dev/null || true").split()
    report("uninstall", not left and unit.state() == "inactive", f"{unit.state()}, left: {left}")
    again = unit.service("start", check=False)
    report("what is not there is said", again.returncode == 1 and "uniroute service install" in again.stderr, again.stderr.strip())


def check_user(machine, place):
    """A user's own, under the user's own manager."""
    machine.out("systemd-run", "-q", "--unit=ann", "-p", "User=ann", "-p", "Delegate=yes", "-p", "Type=notify", "-E", "XDG_RUNTIME_DIR=/run/user/4711", "-E", "HOME=/home/ann",
                SYSTEMD, "--user", "--unit=basic.target")
    unit = Unit(machine, "uniroute-mine", user=True)
    machine.write("/home/ann/.config/uniroute/token", run.TOKEN + "\n", "600", "4711:4711")
    machine.write("/home/ann/.config/uniroute/uniroute.toml", place.config("token", {"mine": place.upstream}), "600", "4711:4711")
    machine.out("chown", "-R", "4711:4711", "/home/ann")
    said = unit.service("install").stdout
    wait_for("it to be active", unit.is_active, 30)
    status = place.get("mine")[0]
    user = machine.out("stat", "-c", "%U", f"/proc/{unit.pid()}").strip()
    report("a user's service", status == 200 and user == "ann" and "enable-linger" in said, f"{status}, as {user}")
    before = unit.pid()
    unit.service("restart")
    wait_for("the next one", lambda: unit.is_active() and unit.pid() not in ("0", before), 30)
    ready = unit.uniroute("ready", "--timeout", "5", check=False)
    report("its user asks it", ready.returncode == 0, ready.stdout.strip() + ready.stderr.strip())
    unit.service("uninstall")
    report("is gone again", unit.state() == "inactive" and not machine.has("test", "-e", "/home/ann/.config/systemd/user/uniroute-mine.service"), unit.state())


def check_owner(machine, place):
    """Of the system, for a config file that is a user's: it runs as that user, and serves a socket of his in /tmp."""
    unit = Unit(machine, "uniroute-ann")
    machine.write("/home/ann/shop.toml", place.config("/root/token", {"shop": "unix:/tmp/app.sock"}), "600", "4711:4711")
    unit.service("install", "--config", "/home/ann/shop.toml")
    serve = "import http.server, socketserver\nclass S(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):\n  def get_request(s): return s.socket.accept()[0], ('x', 0)\nS('/tmp/app.sock', http.server.SimpleHTTPRequestHandler).serve_forever()"
    machine.out("systemd-run", "-q", "--unit=app", "-p", "User=ann", "-p", "WorkingDirectory=/home/ann/site", "/usr/bin/python3", "-c", serve)
    wait_for("it to be active", unit.is_active, 30)
    seen = wait_for("the app", lambda: place.get("shop") if place.get("shop")[0] == 200 else None)
    user = machine.out("stat", "-c", "%U", f"/proc/{unit.pid()}").strip()
    report("a system's service for a user's file", seen[1] == "of ann" and user == "ann", f"as {user}, from /tmp/app.sock: {seen[1]!r}")
    unit.service("uninstall")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--profile", default="release")
    parser.add_argument("--rate", type=int, default=100, help="requests a second while it is restarted")
    parser.add_argument("--times", type=int, default=5, help="restarts")
    args = parser.parse_args()
    run.BIN = os.path.join(os.path.dirname(run.BIN), args.profile)
    why = missing()
    if why:
        print(f"NOT CHECKED: no systemd can be run here: {why}")
        return 0
    with tempfile.TemporaryDirectory() as dir:
        place, machine = Place(dir), None
        try:
            machine = Machine(dir)
            machine.install(f"{run.BIN}/uniroute", "/usr/local/bin/uniroute")
            unit = check_readiness(machine, place)
            check_restarts(machine, place, unit, args)
            check_watchdog(machine, place, unit)
            check_end(machine, place, unit)
            check_user(machine, place)
            check_owner(machine, place)
        except SystemExit:
            if machine and machine.pid:
                print(machine.log(), file=sys.stderr)
            raise
        finally:
            if machine:
                machine.end()
            place.end()
    print(f"{len(run.failures)} failed" + (": " + ", ".join(run.failures) if run.failures else ""))
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
