#!/usr/bin/env python3
"""What abuse of the public door costs: a well-behaved visitor alone, and then beside one attack after the other.

    bench/acceptance/abuse.py [--quick] [--only NAME,…] [--profile release|debug] [--control]

Needs the binaries (cargo build --release --workspace --bins). For each attack: the visitor's times (50 small
requests a second on four connections, one more connection each second), RSS of edge and agent before, at the peak
and after, and the edge's tasks before and after. It passes when no request of the visitor fails, his p99 at most
doubles (below FLOOR_MS it is fine in any case), the edge grows by no more than the attack's bound, and what the
attack held is given back. The attackers are two processes that get what the others leave of the machine
(SCHED_IDLE): on one of their own they would take no time from the edge. All is on loopback and ended by pid.
"""
import argparse, errno, multiprocessing, os, re, resource, selectors, socket, statistics, struct, sys, tempfile, threading, time

import run
from run import MIB, Process, World, p, report, wait_for

FLOOR_MS = 5.0
RATE, CONNECTIONS = 50, 4
ATTACKERS = 2
HOST = b""
PORT = 0
# Where the attackers go.
TARGET = 0


# The well-behaved visitor.

class Measured:
    def __init__(self):
        self.times, self.fresh, self.failed = [], [], []

    def p99(self):
        return p(sorted(self.times), 0.99) if self.times else float("inf")

    def p50(self):
        return p(sorted(self.times), 0.5) if self.times else float("inf")


def connect(timeout=10.0):
    s = socket.create_connection(("127.0.0.1", PORT), timeout=timeout)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


def ask(s):
    s.sendall(b"GET /1k HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n")
    got = b""
    while b"\r\n\r\n" not in got:
        more = s.recv(65536)
        if not more:
            raise OSError("closed before the answer")
        got += more
    head, body = got.split(b"\r\n\r\n", 1)
    if not head.startswith(b"HTTP/1.1 200"):
        raise OSError(head.split(b"\r\n")[0].decode() + " " + "".join(re.findall(r"UR-\d+", head.decode())))
    while len(body) < 1024:
        more = s.recv(65536)
        if not more:
            raise OSError("closed in the answer")
        body += more


def visit(seconds):
    """Times in ms. What a late answer makes late counts as if it had been asked for in time."""
    measured, end = Measured(), time.monotonic() + seconds
    every = CONNECTIONS / RATE

    def steady(n):
        s, due = None, time.monotonic() + n / RATE
        while due < end:
            time.sleep(max(0, due - time.monotonic()))
            try:
                s = s or connect()
                began = time.monotonic()
                ask(s)
            except OSError as error:
                measured.failed.append(repr(error))
                s = None
            over = time.monotonic()
            measured.times.append((over - began) * 1e3)
            due += every
            while due < over:
                measured.times.append((over - due) * 1e3)
                due += every
        if s:
            s.close()

    def fresh():
        due = time.monotonic() + 0.5
        while due < end:
            time.sleep(max(0, due - time.monotonic()))
            began = time.monotonic()
            try:
                with connect() as s:
                    ask(s)
            except OSError as error:
                measured.failed.append("new connection: " + repr(error))
            measured.fresh.append((time.monotonic() - began) * 1e3)
            due = max(due + 1, time.monotonic())

    threads = [threading.Thread(target=steady, args=(n,)) for n in range(CONNECTIONS)] + [threading.Thread(target=fresh)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return measured


def warm_up():
    """What is there from the first use on is there: buffers, and the agent's lanes for long bodies."""
    for _ in range(3):
        with connect() as s:
            s.sendall(b"GET /bytes/50000000 HTTP/1.1\r\nHost: " + HOST + b"\r\nConnection: close\r\n\r\n")
            while s.recv(1 << 20):
                pass
    visit(1.0)


# HTTP/2 by hand: as much of it as an attacker needs.

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def number(value, bits, first):
    """An integer of HPACK (RFC 7541, section 5.1)."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    out, value = bytes([first | most]), value - most
    while value >= 128:
        out, value = out + bytes([value % 128 | 128]), value // 128
    return out + bytes([value])


def text(value):
    return number(len(value), 7, 0) + value


def head(path=b"/1k", method=2):
    """method 2 is GET and 3 POST (RFC 7541, appendix A)."""
    return bytes([0x80 | method, 0x86]) + b"\x04" + text(path) + b"\x01" + text(HOST)


def hello(settings=b""):
    return PREFACE + frame(SETTINGS, 0, 0, settings)


# The attackers: each runs in a process until its end, and says in `stats` what it did.

READY, DONE, CLOSED, WORST, REFUSED = range(5)


def dial():
    """Not blocking; None when the machine has no port or descriptor left, or the edge takes no more."""
    s = socket.socket()
    s.setblocking(False)
    if s.connect_ex(("127.0.0.1", TARGET)) not in (0, errno.EINPROGRESS):
        s.close()
        return None
    return s


def flood(stats, until, make, connections=4):
    """Writes what `make` yields for each connection as fast as it is taken, and reads what comes back; a connection
    that is closed is made anew."""
    selector = selectors.DefaultSelector()
    stats[READY] = 1

    def begin():
        s = dial()
        if s is None:
            time.sleep(0.01)
            return
        selector.register(s, selectors.EVENT_READ | selectors.EVENT_WRITE, [make(), b""])

    def lose(s):
        selector.unregister(s)
        s.close()
        stats[CLOSED] += 1

    while time.monotonic() < until:
        while len(selector.get_map()) < connections:
            begin()
        for key, events in selector.select(0.1):
            s, state = key.fileobj, key.data
            try:
                if events & selectors.EVENT_READ and not s.recv(1 << 18):
                    lose(s)
                    continue
                if events & selectors.EVENT_WRITE:
                    if not state[1]:
                        count, state[1] = next(state[0])
                        stats[DONE] += count
                    sent = s.send(state[1])
                    state[1] = state[1][sent:]
            except BlockingIOError:
                pass
            except OSError:
                lose(s)


def rapid_reset(stats, until, _):
    def make():
        yield 0, hello()
        block, stream = head(), 1
        while True:
            batch = []
            for _ in range(64):
                batch.append(frame(HEADERS, END_STREAM | END_HEADERS, stream, block) + frame(RST_STREAM, 0, stream, b"\0\0\0\x08"))
                stream += 2
            yield 64, b"".join(batch)

    flood(stats, until, make)


def continuation_flood(stats, until, _):
    sizes = iter(range(1 << 30))

    def make():
        # Every other connection sends tiny ones: their number is to be bounded, too.
        field = b"\x00" + text(b"x-filler") + text(b"f" * 100)
        piece = field * 140 if next(sizes) % 2 else b""
        yield 0, hello() + frame(HEADERS, END_STREAM, 1, head())
        batch = frame(CONTINUATION, 0, 1, piece)
        count = max(1, 65536 // len(batch))
        while True:
            yield count, batch * count

    flood(stats, until, make)


def repeated(piece, first=b"", count=2048):
    def attack(stats, until, _):
        def make():
            yield 0, hello() + first
            while True:
                yield count, piece * count

        flood(stats, until, make)

    return attack


settings_flood = repeated(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535) * 6))
ping_flood = repeated(frame(PING, 0, 0, b"12345678"))


def empty_data(stats, until, context):
    # On a request that is under way: it has a body, and this never comes.
    first = frame(HEADERS, END_HEADERS, 1, head(b"/upload", 3))
    repeated(frame(DATA, 0, 1), first, 4096)(stats, until, context)


def hpack_bomb(stats, until, _):
    def make():
        # One field fills the table; each byte that names it is 4 KB for whoever takes it apart.
        big = b"\x40" + text(b"x") + text(b"b" * 4050)
        yield 0, hello() + frame(HEADERS, END_STREAM | END_HEADERS, 1, head() + big)
        stream = 3
        while True:
            bomb = frame(HEADERS, END_STREAM | END_HEADERS, stream, head() + b"\xbe" * 16000)
            stream += 2
            yield 1, bomb

    flood(stats, until, make)


def hold(stats, until, count, first, tick=None, every=1.0, again=False, read=True):
    """Keeps `count` connections that have sent `first`, and calls `tick` for each of them every so often. Counts
    what is closed, and the longest that one lived."""
    selector, born, dials = selectors.DefaultSelector(), {}, 0
    due = time.monotonic()
    while time.monotonic() < until:
        # In portions: the queue of a listener is short.
        for _ in range(100):
            if dials >= count:
                break
            s = dial()
            if s is None:
                stats[REFUSED] += 1
                break
            dials += 1
            selector.register(s, selectors.EVENT_WRITE, first)
        for key, events in selector.select(0.05):
            s = key.fileobj
            try:
                if events & selectors.EVENT_WRITE:
                    s.send(key.data)
                    born[s] = time.monotonic()
                    stats[DONE] += 1
                    selector.modify(s, selectors.EVENT_READ, None) if read else selector.unregister(s)
                elif s.recv(65536):
                    continue
                else:
                    raise ConnectionResetError
            except BlockingIOError:
                pass
            except OSError:
                selector.unregister(s)
                s.close()
                stats[CLOSED] += 1
                if s in born:
                    stats[WORST] = max(stats[WORST], time.monotonic() - born.pop(s))
                dials -= again
        if stats[READY] == 0 and dials >= count and len(born) + stats[CLOSED] >= count:
            stats[READY] = 1
        if tick and time.monotonic() >= due:
            due = time.monotonic() + every
            for s in list(born):
                try:
                    s.send(tick)
                except OSError:
                    pass
    # One that still lives has lived for so long.
    if born:
        stats[WORST] = max(stats[WORST], time.monotonic() - min(born.values()))


def window_zero(stats, until, count):
    asks = b"".join(frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, head(b"/bytes/100000000")) for n in range(100))
    hold(stats, until, count, hello(struct.pack(">HI", 4, 0)) + asks)


def slow_heads(stats, until, count):
    hold(stats, until, count, b"GET /1k HTTP/1.1\r\nHost: " + HOST + b"\r\nX-Slow: ", b"s", 1.0, again=True)


def slow_bodies(stats, until, count):
    hold(stats, until, count, b"POST /upload HTTP/1.1\r\nHost: " + HOST + b"\r\nContent-Length: 100000\r\n\r\n", b"s", 3.0)


def slow_readers(stats, until, count):
    hold(stats, until, count, b"GET /bytes/100000000 HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n", read=False)


def idle(stats, until, count):
    hold(stats, until, count, b"GET /1k HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n")


def churn(stats, until, _):
    stats[READY] = 1
    begins = [b"", b"G", b"GET /1k HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n", hello()]
    n = 0
    while time.monotonic() < until:
        n += 1
        s = socket.socket()
        s.settimeout(2)
        try:
            s.connect(("127.0.0.1", TARGET))
            s.send(begins[n % 4])
            if n % 8 < 4:
                # With a reset.
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stats[DONE] += 1
        except OSError:
            stats[REFUSED] += 1
        s.close()


class Attack:
    """`bound`: MiB by which the edge may grow. `count`: connections, of all attackers. `start`: for so long what is
    asked for at once fills all windows, as fast as the machine can; what the visitor sees of that is a figure of its
    own, and his p99 is what comes after."""

    def __init__(self, run, bound, count=0, quick=None, seconds=15.0, quick_seconds=3.0, life=None, each=None, start=0.0):
        self.run, self.bound, self.life, self.each, self.start = run, bound, life, each, start
        self.count, self.quick = count, quick if quick is not None else count
        self.seconds, self.quick_seconds = seconds, quick_seconds
        self.name = run.__name__


settings_flood.__name__, ping_flood.__name__ = "settings_flood", "ping_flood"
ATTACKS = [
    # KiB each.
    Attack(idle, None, 10_000, 1000, each=12),
    Attack(rapid_reset, 50),
    Attack(continuation_flood, 50),
    Attack(settings_flood, 50),
    Attack(ping_flood, 50),
    Attack(empty_data, 50),
    Attack(hpack_bomb, 50),
    # A connection with 100 streams each.
    Attack(window_zero, 200, 2, 2, start=2.0),
    # Each is closed 10 s after its first byte.
    Attack(slow_heads, 50, 1000, 200, quick_seconds=11.5, life=11.0),
    Attack(slow_bodies, 100, 500, 100),
    Attack(slow_readers, 200, 200, 50, start=3.0),
    Attack(churn, 50),
]


class Watch:
    """RSS of edge and agent, and the processor time of the edge."""

    def __init__(self, world):
        self.pids = [world.edge.pid, world.agent.pid]
        self.before = self.peak = [self.rss(pid) for pid in self.pids]
        self.began, self.used = time.monotonic(), self.cpu()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()

    @staticmethod
    def rss(pid):
        with open(f"/proc/{pid}/statm") as f:
            return int(f.read().split()[1]) * 4096 / MIB

    def cpu(self):
        with open(f"/proc/{self.pids[0]}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def look(self):
        while not self.over.wait(0.1):
            self.peak = [max(had, self.rss(pid)) for had, pid in zip(self.peak, self.pids)]

    def end(self):
        self.over.set()
        self.thread.join()
        self.share = (self.cpu() - self.used) / (time.monotonic() - self.began)


def attacked(world, attack, count, seconds):
    """The visitor beside the attack."""
    processes, stats = [], []
    watch = Watch(world)
    until = time.monotonic() + 60
    end = multiprocessing.Value("d", until, lock=False)
    for _ in range(ATTACKERS):
        stats.append(multiprocessing.Array("d", 5, lock=False))
        process = multiprocessing.Process(target=attacker, args=(attack.run, stats[-1], end, -(-count // ATTACKERS)))
        process.start()
        processes.append(process)
    try:
        give_up = time.monotonic() + 20
        while not all(s[READY] for s in stats) and time.monotonic() < give_up:
            time.sleep(0.05)
        end.value = time.monotonic() + attack.start + seconds + 0.3
        first = visit(attack.start) if attack.start else Measured()
        measured = visit(seconds)
        measured.failed += first.failed
        measured.at_first = max(first.times + first.fresh, default=0)
        held = Watch.rss(world.edge.pid) - watch.before[0]
        for process in processes:
            process.join(10)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
    watch.end()
    total = [sum(s[n] for s in stats) for n in range(5)]
    total[WORST] = max(s[WORST] for s in stats)
    total[READY] = all(s[READY] for s in stats)
    return measured, watch, total, held


class Until:
    """An end that may be moved while one runs to it."""

    def __init__(self, value):
        self.value = value

    def __gt__(self, other):
        return self.value.value > other


def attacker(run, stats, end, count):
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    run(stats, Until(end), count)


# What takes longer than an attack: connections that are opened at the beginning and must be closed in time.

class Patience(threading.Thread):
    """`cases`: what is sent, the seconds after which the connection has to be closed, what the answer begins with."""

    def __init__(self):
        super().__init__(daemon=True)
        post = b"POST /upload HTTP/1.1\r\nHost: " + HOST + b"\r\nContent-Length: 100000\r\n\r\nsome"
        # RFC 9113: a connection without a request is idle for 75 s, and has 10 s to say goodbye.
        self.cases = [
            ("HTTP/1.1: a body that stops", post, 66, b"HTTP/1.1 408"),
            ("HTTP/2: a head that never ends", hello() + frame(HEADERS, END_STREAM, 1, head()), 88, b""),
            ("HTTP/2: no request, and no answer to a PING", hello(), 88, b""),
            ("HTTP/2: a body that stops", hello() + frame(HEADERS, END_HEADERS, 1, head(b"/upload", 3)) + frame(DATA, 0, 1, b"some"), 66 + 88, b""),
        ]
        self.open, self.seen = {}, {}
        for case in self.cases:
            s = connect()
            s.setblocking(False)
            s.send(case[1])
            self.open[s] = (case, time.monotonic(), bytearray())

    def run(self):
        selector = selectors.DefaultSelector()
        for s in self.open:
            selector.register(s, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                case, born, got = self.open[key.fileobj]
                try:
                    data = key.fileobj.recv(65536)
                except OSError:
                    data = b""
                got += data
                if not data:
                    self.seen[case[0]] = time.monotonic() - born, bytes(got)
                    selector.unregister(key.fileobj)

    def check(self):
        for case, born, _ in self.open.values():
            name, _, bound, answer = case
            while name not in self.seen and time.monotonic() < born + bound:
                time.sleep(0.1)
            life, got = self.seen.get(name, (None, b""))
            said = f", answered {got.splitlines()[0].decode()!r}" if answer and got else ""
            report(name, life is not None and got.startswith(answer), f"closed after {life:.1f} s{said}" if life else f"still open after {bound} s")


def tasks_of(world):
    """Of the edge, without those of the agent's lanes, which come with long bodies and go in their own time."""
    return world.metric("tasks") - sum(session["lanes"] for session in world.status()["sessions"])


def settled(world, before, bound=8.0):
    """The edge's tasks, once they are back, or after so long."""
    end = time.monotonic() + bound
    while (tasks := tasks_of(world)) > before and time.monotonic() < end:
        time.sleep(0.1)
    return tasks


def check(world, attack, args, alone, deadline, later):
    """`later`: seconds that the attacks behind this one need."""
    count = attack.quick if args.quick else attack.count
    room = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 500
    if count > room:
        print(f"      {attack.name}: {room} connections instead of {count}: no process may have more descriptors here", flush=True)
        count = room
    seconds = attack.quick_seconds if args.quick else attack.seconds
    rounds, failed, fresh, peaks = [], [], [], []
    for _ in range(3):
        alone.append(visit(1.0 if args.quick else 5.0))
        # Of the last ones: one alone would be too few.
        before = Measured()
        for one in alone[-3:]:
            before.times += one.times
            before.fresh += one.fresh
            failed += one.failed
            one.failed = []
        tasks = settled(world, 0, 0.3)
        measured, watch, stats, held = attacked(world, attack, count, seconds)
        failed += measured.failed
        after = settled(world, tasks + 1)
        rss = [Watch.rss(pid) for pid in watch.pids]
        peaks.append(watch.peak[0] - watch.before[0])
        rounds.append((measured.p99() / max(before.p99(), FLOOR_MS / 2), before, measured))
        fresh.append((max(measured.fresh, default=0), max(before.fresh, default=0)))
        if statistics.median_low([r[0] for r in rounds]) <= 2 or time.monotonic() + seconds + 8 + later > deadline:
            break
    ratio, before, measured = sorted(rounds, key=lambda r: r[0])[(len(rounds) - 1) // 2]
    seen = f"{stats[DONE]:.0f} sent, {stats[CLOSED]:.0f} closed by the edge" + (f", {stats[REFUSED]:.0f} not connected" if stats[REFUSED] else "")
    times = " ".join(f"{r[2].p99():.2f}" for r in rounds)
    report(f"{attack.name}: p99 of others", ratio <= 2,
           f"p50 {before.p50():.2f} -> {measured.p50():.2f} ms, p99 {before.p99():.2f} -> {measured.p99():.2f} ms (of {times}); "
           f"new connection at worst {min(f[1] for f in fresh):.1f} -> {min(f[0] for f in fresh):.1f} ms; {seen}; edge takes {watch.share:.2f} of a core")
    if attack.start:
        longest = max(r[2].at_first for r in rounds)
        report("… at its start", longest < 2000, f"the longest takes {longest:.0f} ms, in the first {attack.start:.0f} s (at most 2000)")
    report("… their requests", not failed, f"{len(measured.times)} in time" if not failed else f"{len(failed)} failed: {sorted(set(failed))[:3]}")
    memory = f"edge {watch.before[0]:.1f} -> {watch.peak[0]:.1f} -> {rss[0]:.1f} MiB, agent {watch.before[1]:.1f} -> {watch.peak[1]:.1f} -> {rss[1]:.1f} MiB"
    if attack.each:
        each = held * 1024 / count
        report("… RSS", each <= attack.each and stats[READY] == 1, f"{memory}; {each:.1f} KiB for each of {count} (at most {attack.each})")
    else:
        report("… RSS", max(peaks) <= attack.bound, f"{memory} (at most {attack.bound} MiB more)")
    if attack.life:
        report("… closed in time", stats[CLOSED] > 0 and stats[WORST] <= attack.life, f"the longest lived {stats[WORST]:.1f} s (at most {attack.life})")
    report("… tasks", after <= tasks + 1, f"{tasks:.0f} -> {after:.0f}")


def main():
    global HOST, PORT, TARGET
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help=", ".join(attack.name for attack in ATTACKS) + ", patience")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter: a minute and a half")
    parser.add_argument("--profile", default="release", choices=["release", "debug"])
    parser.add_argument("--bin", help="folder of the binaries")
    parser.add_argument("--control", action="store_true", help="attack another edge than the visitor's: what the machine adds by itself")
    args = parser.parse_args()
    run.BIN = args.bin or os.path.join(os.path.dirname(run.BIN), args.profile)
    only = [name for name in args.only.split(",") if name]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    began = time.monotonic()
    deadline = began + (80 if args.quick else 345)
    with tempfile.TemporaryDirectory() as dir:
        origin = Process([f"{run.BIN}/uniroute-bench", "origin"], os.path.join(dir, "origin.log"))
        world = other = None
        try:
            address = "127.0.0.1:" + wait_for("origin", lambda: re.search(r"listening 127.0.0.1:(\d+)", origin.text())).group(1)
            world = World(dir, address)
            HOST, PORT = world.host().encode(), world.port
            TARGET = PORT
            if args.control:
                os.mkdir(os.path.join(dir, "other"))
                other = World(os.path.join(dir, "other"), address)
                TARGET = other.port
            warm_up()
            alone = [visit(3.0 if args.quick else 10.0)]
            patience = None
            if not args.quick and (not only or "patience" in only):
                patience = Patience()
                patience.start()
            chosen = [attack for attack in ATTACKS if not only or attack.name in only]
            for n, attack in enumerate(chosen):
                later = sum((a.quick_seconds + 2 if args.quick else a.seconds + 8) + a.start for a in chosen[n + 1:])
                check(world, attack, args, alone, deadline, later)
                if world.edge.p.poll() is not None or world.agent.p.poll() is not None:
                    report(attack.name, False, "edge or agent has ended")
                    break
            if patience:
                patience.check()
        finally:
            for w in (world, other):
                if w:
                    w.end()
            origin.kill()
    failures = run.failures
    print(f"{len(failures)} failed" + (": " + ", ".join(failures) if failures else "") + f"; {time.monotonic() - began:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
