#!/usr/bin/env python3
"""An agent that is restarted every few seconds under load: no request fails and no POST is done twice.

    bench/acceptance/restarts.py [--seconds N] [--kill] [--rate N] [--every N] [--profile release|debug]

Needs the binaries (cargo build --release --workspace --bins). 200 requests a second, half of them POSTs of 0 to
20 KB, on connections that are kept and on new ones; the local server answers after 0 to 50 ms and counts each POST by
its id. The agent gets SIGTERM every 5 s and is started again at once, with the same identity. With --kill it gets
SIGKILL: GETs must not fail then either, a POST may fail with UR-2002, and none is done twice. All is on loopback and
ended by pid.
"""
import argparse, asyncio, collections, hashlib, json, multiprocessing, os, random, signal, sys, tempfile, time

import run
from run import World, p, report

HOST = b""
PORT = 0
# A request that takes longer has failed.
PATIENCE = 30.0


# The local server: what it was asked, and how often.

async def read_head(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
    return lines[0], fields


async def read_body(reader, fields):
    if fields.get("transfer-encoding", "").lower() == "chunked":
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readuntil(b"\r\n")
        return body
    return await reader.readexactly(int(fields.get("content-length", 0)))


def origin(pipe):
    begun, done, spoilt = collections.Counter(), collections.Counter(), []

    async def serve(reader, writer):
        try:
            while True:
                line, fields = await read_head(reader)
                id = fields.get("x-id", "")
                if line.startswith("POST"):
                    begun[id] += 1
                body = await read_body(reader, fields)
                if line.startswith("POST"):
                    # All of it is here: this is when something is done.
                    done[id] += 1
                    if hashlib.sha256(body).hexdigest() != fields.get("x-digest"):
                        spoilt.append(id)
                await asyncio.sleep(random.uniform(0, 0.05))
                answer = json.dumps([id, len(body)]).encode()
                if line.startswith("GET /counts"):
                    answer = json.dumps([begun, done, spoilt]).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=512)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


# The visitors.

class Seen:
    def __init__(self):
        self.times = {"GET": [], "POST": []}
        self.failed = collections.Counter()
        self.answered, self.refused, self.asked = set(), set(), 0


async def ask(connection, method, id, body, close):
    reader, writer = connection
    head = f"{method} /{id} HTTP/1.1\r\nHost: {HOST}\r\nX-Id: {id}\r\n"
    if method == "POST":
        head += f"X-Digest: {hashlib.sha256(body).hexdigest()}\r\nContent-Length: {len(body)}\r\n"
    if close:
        head += "Connection: close\r\n"
    writer.write(head.encode() + b"\r\n" + body)
    await writer.drain()
    line, fields = await read_head(reader)
    answer = await read_body(reader, fields)
    return int(line.split(" ")[1]), fields, answer


async def one(seen, idle, n):
    method = "POST" if n % 2 else "GET"
    fresh = n % 10 < 3
    id = f"{n}-{random.getrandbits(32):08x}"
    body = random.randbytes(random.choice([0, 1, 100, random.randint(0, 20_000), 20_000])) if method == "POST" else b""
    began = time.monotonic()
    connection = None
    try:
        async with asyncio.timeout(PATIENCE):
            kept = not fresh and idle
            connection = idle.pop() if kept else await asyncio.open_connection("127.0.0.1", PORT)
            status, fields, answer = await ask(connection, method, id, body, fresh)
        if status != 200:
            code = fields.get("x-uniroute-error", "")
            seen.failed[f"{method} {status} {code}"] += 1
            seen.refused.add(id)
        elif json.loads(answer) != [id, len(body)]:
            seen.failed[f"{method} got another's answer"] += 1
        elif method == "POST":
            seen.answered.add(id)
        seen.times[method].append((time.monotonic() - began) * 1e3)
        if not fresh and fields.get("connection", "").lower() != "close":
            idle.append(connection)
            connection = None
    except (OSError, EOFError, TimeoutError) as error:
        seen.failed[f"{method} {type(error).__name__}"] += 1
    finally:
        if connection:
            connection[1].close()


async def load(seconds, rate):
    seen, idle, under_way = Seen(), [], set()
    began, n = time.monotonic(), 0
    while (due := began + n / rate) < began + seconds:
        await asyncio.sleep(max(0, due - time.monotonic()))
        task = asyncio.create_task(one(seen, idle, n))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        n += 1
    await asyncio.gather(*under_way)
    seen.asked = n
    for _, writer in idle:
        writer.close()
    return seen


async def restart(world, how, every, until, gaps):
    while time.monotonic() + every < until:
        await asyncio.sleep(every)
        began = time.monotonic()
        await asyncio.to_thread(world.agent.kill, how)
        ended = time.monotonic()
        world.agent = await asyncio.to_thread(world.start_agent)
        gaps.append((ended - began, time.monotonic() - ended))


async def both(world, args):
    gaps, until = [], time.monotonic() + args.seconds
    how = signal.SIGKILL if args.kill else signal.SIGTERM
    restarts = asyncio.create_task(restart(world, how, args.every, until, gaps))
    seen = await load(args.seconds, args.rate)
    await restarts
    return seen, gaps


async def counts(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /counts HTTP/1.1\r\nHost: origin\r\n\r\n")
    _, fields = await read_head(reader)
    answer = json.loads(await read_body(reader, fields))
    writer.close()
    return answer


def main():
    global HOST, PORT
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--every", type=float, default=5, help="seconds between restarts")
    parser.add_argument("--rate", type=int, default=200, help="requests a second")
    parser.add_argument("--kill", action="store_true", help="SIGKILL instead of SIGTERM")
    parser.add_argument("--profile", default="release", choices=["release", "debug"])
    parser.add_argument("--bin", help="folder of the binaries")
    parser.add_argument("--logs", help="folder for the logs of edge and agents, which must not be there yet")
    args = parser.parse_args()
    run.BIN = args.bin or os.path.join(os.path.dirname(run.BIN), args.profile)
    if args.logs:
        os.mkdir(args.logs)
    mine, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=origin, args=(theirs,), daemon=True)
    server.start()
    port = mine.recv()
    with tempfile.TemporaryDirectory() as dir:
        world = World(args.logs or dir, f"127.0.0.1:{port}")
        try:
            HOST, PORT = world.host(), world.port
            seen, gaps = asyncio.run(both(world, args))
            begun, done, spoilt = asyncio.run(counts(port))
        finally:
            world.end()
            server.kill()
            server.join()
    doubled = [id for id, n in done.items() if n > 1]
    lost = [id for id in seen.answered if id not in done]
    again = sum(n - 1 for n in begun.values())
    name = f"agent {'killed' if args.kill else 'restarted'} every {args.every:g} s, {args.rate} requests a second for {args.seconds:g} s"
    ends, starts = sorted(g[0] * 1e3 for g in gaps), sorted(g[1] * 1e3 for g in gaps)
    print(f"      {name}: {len(gaps)} times; gone after {p(ends, .5):.0f} ms (longest {ends[-1]:.0f}), "
          f"ready again {p(starts, .5):.0f} ms later (longest {starts[-1]:.0f})", flush=True)
    failed = dict(seen.failed)
    allowed = {what: n for what, n in failed.items() if args.kill and what == "POST 502 UR-2002"}
    wrong = {what: n for what, n in failed.items() if what not in allowed}
    report("failed requests", not wrong, f"{sum(wrong.values())} of {seen.asked} {wrong or ''}" + (f"; POSTs of which nobody knows (UR-2002): {sum(allowed.values())}" if args.kill else ""))
    report("doubled POSTs", not doubled, f"{len(doubled)} of {len(done)} done; {again} came again after a part of them")
    report("lost POSTs", not lost and not spoilt, f"{len(lost)} answered and not done, {len(spoilt)} spoilt")
    done_though = sum(1 for id in seen.refused if id in done)
    for method, times in seen.times.items():
        times.sort()
        print(f"      {method}: p50 {p(times, .5):.1f} ms, p90 {p(times, .9):.1f} ms, p99 {p(times, .99):.1f} ms, longest {times[-1]:.0f} ms")
    if seen.refused:
        print(f"      refused requests that the local server did nevertheless: {done_though} of {len(seen.refused)}")
    print(f"{len(run.failures)} failed" + (": " + ", ".join(run.failures) if run.failures else ""))
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
