"""The local server of the WebSocket cases: the `websockets` library, which writes down what it saw.

The path says what it does, `?id=…` under which word it is written down.
"""
import asyncio, urllib.parse

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, NegotiationError

# The better one is first.
SUBPROTOCOLS = ["chat.v2", "chat.v1"]
# Bytes that are kept of what came in.
KEPT = 1 << 20


class Record:
    """What the server saw of one WebSocket."""

    def __init__(self):
        self.socket = None
        self.closed = None
        self.sent = 0
        self.read = 0


class Recording(ServerConnection):
    wire_in = b""

    def data_received(self, data):
        if len(self.wire_in) < KEPT:
            self.wire_in += data
        super().data_received(data)


records = {}


async def echo(socket, record):
    async for message in socket:
        await socket.send(message)


async def pieces(socket, record, size):
    """Says each message back in pieces."""
    async for message in socket:
        size = int(size)
        await socket.send([message[at : at + size] for at in range(0, len(message), size)])


async def ping(socket, record, length):
    payload = b"p" * int(length)
    await (await socket.ping(payload))
    await socket.send("answered")
    await socket.wait_closed()


async def pong(socket, record):
    await socket.pong(b"nobody asked")
    await echo(socket, record)


async def close(socket, record, code, reason=""):
    await socket.close(int(code), urllib.parse.unquote(reason))


async def close_without_code(socket, record):
    async with socket.send_context():
        socket.protocol.send_close()
    await socket.wait_closed()


async def half_close(socket, record):
    await socket.send("the last word")
    socket.transport.write_eof()
    await socket.wait_closed()


async def abort(socket, record):
    await socket.recv()
    socket.transport.abort()


async def flood(socket, record):
    """Sends for ever; each message begins with its number."""
    while True:
        await socket.send(record.sent.to_bytes(8, "big") * 8192)
        record.sent += 1


async def deaf(socket, record):
    """Reads nothing until it is told to."""
    record.go = asyncio.Event()
    await record.go.wait()
    async for message in socket:
        record.read += len(message)
        if record.read == record.expected:
            await socket.send("all")


PATHS = {
    "echo": echo,
    "pieces": pieces,
    "ping": ping,
    "pong": pong,
    "close": close,
    "close_without_code": close_without_code,
    "half_close": half_close,
    "abort": abort,
    "flood": flood,
    "deaf": deaf,
}


async def handle(socket):
    url = urllib.parse.urlsplit(socket.request.path)
    word, *rest = url.path.strip("/").split("/")
    record = records.setdefault(urllib.parse.parse_qs(url.query).get("id", [""])[0], Record())
    record.socket = socket
    try:
        await PATHS[word](socket, record, *rest)
    except ConnectionClosed:
        pass
    await socket.wait_closed()
    record.closed = (socket.close_code, socket.close_reason)


def choose(socket, offered):
    chosen = next((ours for ours in SUBPROTOCOLS if ours in offered), None)
    if offered and not chosen:
        raise NegotiationError("none of these")
    return chosen


def start():
    return serve(
        handle,
        "127.0.0.1",
        0,
        create_connection=Recording,
        select_subprotocol=choose,
        max_size=64 << 20,
        ping_interval=None,
    )
