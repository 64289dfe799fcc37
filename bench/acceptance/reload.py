#!/usr/bin/env python3
"""A config file that changes under load: no request on an untouched tunnel fails, and what is open goes on.

    bench/acceptance/reload.py [--times N] [--rate N] [--bin FOLDER]

Needs the binaries (cargo build --release --workspace --bins). 200 requests a second, half of them POSTs, to one tunnel,
while others are added, changed and removed by editing the file: every second time a SIGHUP says so, otherwise the agent
sees it by itself. A slow download through a tunnel that is changed all the while comes to its end. All is on loopback
and ended by pid.
"""
import argparse, asyncio, multiprocessing, os, signal, sys, tempfile, time

import restarts, run
from run import Process, World, p, report, wait_for


def tunnel(key, port, extra=""):
    return f'[tunnels.{key}]\nupstream = "{port}"\nname = "{key}"\n{extra}\n'


def text(world, ports, n):
    head = f'version = 1\n[agent]\nserver = "http://127.0.0.1:{world.port}"\ntoken_file = "{world.tokens}"\nstate_dir = "{world.dir}/state-reload"\n'
    changes = [f'response_headers = {{ set = {{ "X-Round" = "{n}" }} }}', "compression = true", f"max_body = {n + 100000}"]
    out = head + tunnel("steady", ports[0]) + tunnel("changing", ports[1], changes[n % 3])
    if n % 2:
        out += tunnel("passing", ports[0])
    if n % 5 == 4:
        out += tunnel(f"once-{n}", ports[0])
    return out


def reloaded(agent):
    return agent.text().count('"event":"reloaded"')


async def change(world, agent, path, ports, times, took):
    for n in range(1, times + 1):
        before, began = reloaded(agent), time.monotonic()
        with open(path + ".new", "w") as f:
            f.write(text(world, ports, n))
        os.rename(path + ".new", path)
        if n % 2:
            agent.p.send_signal(signal.SIGHUP)
        while reloaded(agent) == before:
            if time.monotonic() - began > 20:
                raise SystemExit("no reload within 20 s:\n" + agent.text()[-2000:])
            await asyncio.sleep(0.01)
        took.append(((time.monotonic() - began) * 1e3, n % 2))
        await asyncio.sleep(0.1)


async def download(host, port):
    """An answer of which a little comes at a time, from the tunnel that is changed: its size at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /slow HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    _, fields = await restarts.read_head(reader)
    body = await restarts.read_body(reader, fields)
    writer.close()
    return len(body)


def slow_origin(pipe, seconds):
    async def serve(reader, writer):
        try:
            await restarts.read_head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (int(seconds) * 10))
            for _ in range(int(seconds)):
                writer.write(b"x" * 10)
                await writer.drain()
                await asyncio.sleep(1)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def seconds(args):
    return args.times * 1.6 + 2


async def all_of_it(world, agent, path, args, ports, took):
    downloading = asyncio.create_task(download(f"changing.localhost:{world.port}", world.port))
    changing = asyncio.create_task(change(world, agent, path, ports, args.times, took))
    seen = await restarts.load(seconds(args), args.rate)
    await changing
    return seen, await downloading


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--rate", type=int, default=200, help="requests a second")
    parser.add_argument("--bin", help="folder of the binaries")
    args = parser.parse_args()
    run.BIN = args.bin or run.BIN
    mine, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=restarts.origin, args=(theirs,), daemon=True)
    server.start()
    ports = [mine.recv()]
    slow = multiprocessing.Process(target=slow_origin, args=(theirs, seconds(args)), daemon=True)
    slow.start()
    ports.append(mine.recv())
    with tempfile.TemporaryDirectory() as dir:
        world = World(dir, f"127.0.0.1:{ports[0]}")
        try:
            world.agent.kill(signal.SIGTERM)
            path = os.path.join(dir, "uniroute.toml")
            with open(path, "w") as f:
                f.write(text(world, ports, 0))
            agent = Process([f"{run.BIN}/uniroute", "start", "--all", "--config", path, "--output", "json"], os.path.join(dir, "agent-reload.log"))
            wait_for("tunnels", lambda: agent.text().count('"event":"ready"') >= 2)
            restarts.HOST, restarts.PORT = f"steady.localhost:{world.port}", world.port
            took = []
            seen, downloaded = asyncio.run(all_of_it(world, agent, path, args, ports, took))
            agent.kill(signal.SIGTERM)
        finally:
            world.end()
            for process in (server, slow):
                process.kill()
                process.join()
    for how, name in ((1, "by SIGHUP"), (0, "by the file alone")):
        times = sorted(t for t, hup in took if hup == how)
        if times:
            print(f"      {len(times)} reloads {name}: p50 {p(times, .5):.0f} ms, longest {times[-1]:.0f} ms")
    report("reloads", len(took) == args.times, f"{len(took)} of {args.times}")
    failed = dict(seen.failed)
    report("failed requests on the untouched tunnel", not failed, f"{sum(failed.values())} of {seen.asked} {failed or ''}")
    report("download from the changed tunnel", downloaded == int(seconds(args)) * 10, f"{downloaded} bytes over {seconds(args):.0f} s")
    times = sorted(seen.times["GET"] + seen.times["POST"])
    print(f"      p50 {p(times, .5):.1f} ms, p99 {p(times, .99):.1f} ms, longest {times[-1]:.0f} ms (the local server takes 0 to 50)")
    print(f"{len(run.failures)} failed" + (": " + ", ".join(run.failures) if run.failures else ""))
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
