"""A local server that closes idle connections just as the next request comes (Python's `http.server`).

    keep_alive.py SECONDS METHOD ROUNDS

Its keep-alive is SECONDS, after which each visitor's next request comes, give or take some
milliseconds. Told HOST:PORT NAME: the edge, and the tunnel's host.
"""
import asyncio, random, sys, threading

from cases import run, told
from http_server import Handler, Server

SECONDS, METHOD, ROUNDS = float(sys.argv[1]), sys.argv[2], int(sys.argv[3])
VISITORS = 32
# Around the moment when the server closes.
JITTER = 0.02


class Brief(Handler):
    timeout = SECONDS


async def visit(edge, host, number):
    reader, writer = await asyncio.open_connection(*edge.split(":"))
    body = "x" * 1000 if METHOD == "POST" else ""
    path = "/upload" if METHOD == "POST" else "/hello"
    for turn in range(ROUNDS):
        head = f"{METHOD} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write((head + body).encode())
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(answer.partition("content-length:")[2].split()[0])
        said = await reader.readexactly(length)
        assert answer.split()[1] == "200", f"turn {turn} of {number}: {answer} {said.decode()}"
        if turn < ROUNDS - 1:
            await asyncio.sleep(SECONDS + random.uniform(-JITTER, JITTER))
    writer.close()


async def none_fails(edge, host):
    done = await asyncio.gather(*(visit(edge, host, number) for number in range(VISITORS)), return_exceptions=True)
    failed = [error for error in done if error is not None]
    assert not failed, f"{len(failed)} of {VISITORS} visitors: {failed[0]!r}"


async def main():
    server = Server(("127.0.0.1", 0), Brief)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    edge, host = (await told(server.server_address[1])).split()
    return await run(edge, host, cases=[("none_fails", none_fails)])


sys.exit(asyncio.run(main()))
