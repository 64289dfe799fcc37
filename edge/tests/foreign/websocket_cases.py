"""WebSockets through a tunnel, in the manner of the Autobahn test suite.

    websocket_cases.py http1|http2 [inspected]

The local server is the `websockets` library; the visitor is its client over HTTP/1.1, and `h2` with
`wsproto` over HTTP/2; what no library says is said in bytes. Told HOST:PORT NAME: the edge, and the
tunnel's host.
"""
import asyncio, itertools, os, sys, urllib.parse, zlib

import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.utilities import RemoteProtocolError

from cases import add, case, eventually, run, told
from websocket_server import records, start
from websocket_wires import Http1, Http2

MIB = 1 << 20
numbers = itertools.count()


def frame(opcode, payload=b"", fin=True, bits=0, mask=b"\x37\xfa\x21\x3d"):
    """A frame in bytes, masked as a visitor's are."""
    first = bytes([(0x80 if fin else 0) | bits | opcode])
    bit, length = (0x80 if mask else 0), len(payload)
    if length < 126:
        head = bytes([bit | length])
    elif length < 1 << 16:
        head = bytes([bit | 126]) + length.to_bytes(2, "big")
    else:
        head = bytes([bit | 127]) + length.to_bytes(8, "big")
    if mask:
        payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    return first + head + (mask or b"") + payload


def frames(data):
    """Frames of a server: first byte and payload of each."""
    found = []
    while data:
        length, at = data[1], 2
        assert length < 128, "a server masks nothing"
        if length == 126:
            length, at = int.from_bytes(data[2:4], "big"), 4
        elif length == 127:
            length, at = int.from_bytes(data[2:10], "big"), 10
        assert len(data) >= at + length, "a frame is cut"
        found.append((data[0], data[at : at + length]))
        data = data[at + length :]
    return found


class Library:
    """A visitor with the `websockets` library, over HTTP/1.1."""

    def __init__(self, socket):
        self.socket, self.subprotocol = socket, socket.subprotocol

    @staticmethod
    async def open(carrier, path, subprotocols=None, deflate=False):
        host, port = carrier.address
        return Library(
            await websockets.asyncio.client.connect(
                f"ws://{carrier.host}:{port}{path}",
                host=host,
                port=port,
                subprotocols=subprotocols,
                compression="deflate" if deflate else None,
                max_size=64 * MIB,
                ping_interval=None,
                proxy=None,
            )
        )

    async def send(self, *pieces, between=None):
        async def given():
            for piece in pieces:
                yield piece
                if between:
                    await between()

        await self.socket.send(pieces[0] if len(pieces) == 1 else given())

    async def recv(self):
        return await self.socket.recv()

    async def ping(self, payload):
        """Ready when the pong is here."""
        await (await self.socket.ping(payload))

    async def pong(self, payload):
        await self.socket.pong(payload)

    async def close(self, code=1000, reason=""):
        await self.socket.close(code, reason)

    async def ended(self):
        """How the other side closed."""
        try:
            while True:
                await self.socket.recv()
        except ConnectionClosed:
            return self.socket.close_code, self.socket.close_reason


class Wsproto:
    """A visitor with `wsproto`, over whatever carries its bytes."""

    def __init__(self, wire):
        self.wire, self.proto, self.events = wire, Connection(ConnectionType.CLIENT), []
        self.subprotocol = wire.fields.get("sec-websocket-protocol")
        self.message, self.closed, self.pongs = [], None, 0

    @staticmethod
    async def open(carrier, path, subprotocols=None, deflate=False):
        fields = [("sec-websocket-protocol", ", ".join(subprotocols))] if subprotocols else []
        wire = await carrier.open(path, fields)
        assert wire.status == wire.switched, wire.status
        return Wsproto(wire)

    async def send(self, *pieces, between=None):
        kind = TextMessage if isinstance(pieces[0], str) else BytesMessage
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            await self.wire.send(self.proto.send(kind(data=piece, message_finished=last)))
            if between and not last:
                await between()

    async def next(self):
        """One event; the wire's end is a close with 1006."""
        while not self.events:
            if self.closed:
                return None
            try:
                data = await self.wire.recv()
            except ConnectionError:
                data = b""
            if not data:
                self.closed = (1006, "")
                return None
            self.proto.receive_data(data)
            self.events = list(self.proto.events())
        event = self.events.pop(0)
        if isinstance(event, Ping):
            await self.wire.send(self.proto.send(event.response()))
        if isinstance(event, Pong):
            self.pongs += 1
        if isinstance(event, CloseConnection):
            self.closed = (event.code, event.reason or "")
            if self.proto.state.name == "REMOTE_CLOSING":
                await self.wire.send(self.proto.send(event.response()))
        return event

    async def recv(self):
        while event := await self.next():
            if isinstance(event, (TextMessage, BytesMessage)):
                self.message.append(event.data)
                if event.message_finished:
                    whole, self.message = self.message, []
                    return (b"" if isinstance(event, BytesMessage) else "").join(whole)
        raise AssertionError(f"no message, but {self.closed}")

    async def ping(self, payload):
        await self.wire.send(self.proto.send(Ping(payload=payload)))
        seen = self.pongs
        while self.pongs == seen:
            event = await self.next()
            assert isinstance(event, Pong), event
            assert event.payload == payload

    async def pong(self, payload):
        await self.wire.send(self.proto.send(Pong(payload=payload)))

    async def close(self, code=1000, reason=""):
        if not self.closed:
            await self.wire.send(self.proto.send(CloseConnection(code=code, reason=reason)))
            while await self.next():
                pass
        await self.wire.close()

    async def ended(self):
        while await self.next():
            pass
        await self.wire.close()
        return self.closed


class To:
    """Where the cases go: through the tunnel by one carrier, and to the server itself."""

    def __init__(self, kind, address, host, port):
        self.carrier = (Http1 if kind == "http1" else Http2)(address, host)
        self.visitor = Library if kind == "http1" else Wsproto
        self.straight = Http1(("127.0.0.1", port), host)

    def visit(self, path, **options):
        return self.visitor.open(self.carrier, path, **options)

    def wire(self, path, *more, **options):
        return self.carrier.open(path, *more, **options)


def noted(path):
    """The path with a word, and what the server writes down under it."""
    word = f"n{next(numbers)}"
    return f"{path}?id={word}", lambda: records.get(word)


async def server_closed(record):
    await eventually("the server is done", lambda: record() and record().closed)
    return record().closed


async def rest(wire):
    """All bytes to the end, which is a clean one."""
    got = b""
    while data := await wire.recv():
        got += data
    return got


CLOSE = frame(8, b"\x03\xe8")


async def closed(wire, least):
    """All bytes that the server says; once there are `least` the visitor closes."""
    got = b""
    while len(got) < least:
        data = await wire.recv()
        assert data, "it ended early"
        got += data
    await wire.send(CLOSE)
    got += await rest(wire)
    await wire.close()
    return got


# --- Messages


def message_of(kind, length):
    if kind == "text":
        return ("aé€🚇 " * (length // 10 + 1)).encode()[:length].decode(errors="ignore").ljust(length, "x") if length < 1000 else "x" * length
    return os.urandom(length)


def of_length(kind, length):
    async def echoed(to):
        message = message_of(kind, length)
        visitor = await to.visit("/echo")
        for _ in range(2):
            await visitor.send(message)
            assert await visitor.recv() == message
        await visitor.close()

    add(f"{kind}_of_{length}_bytes", echoed)


for kind in ("text", "binary"):
    for length in (0, 1, 125, 126, 127, 65535, 65536, MIB, 16 * MIB):
        of_length(kind, length)


def in_pieces(kind, length, size, who):
    async def echoed(to):
        message = message_of(kind, length)
        if who == "server":
            visitor = await to.visit(f"/pieces/{size}")
            await visitor.send(message)
        else:
            visitor = await to.visit("/echo")
            await visitor.send(*(message[at : at + size] for at in range(0, len(message), size)))
        assert await visitor.recv() == message
        await visitor.close()

    add(f"{kind}_of_{length}_bytes_in_pieces_of_{size}_by_the_{who}", echoed)


for kind, who in itertools.product(("text", "binary"), ("visitor", "server")):
    in_pieces(kind, 999, 1, who)
    in_pieces(kind, MIB, 64 * 1024, who)


@case
async def messages_keep_their_order(to):
    visitor = await to.visit("/echo")

    async def send():
        for number in range(1000):
            await visitor.send(f"{number}")

    sending = asyncio.create_task(send())
    for number in range(1000):
        assert await visitor.recv() == f"{number}"
    await sending
    await visitor.close()


@case
async def a_frame_byte_by_byte(to):
    path, record = noted("/echo")
    wire = await to.wire(path)
    for byte in frame(1, b"slowly"):
        await wire.send(bytes([byte]))
    assert frames(await closed(wire, 8)) == [(0x81, b"slowly"), (0x88, b"\x03\xe8")]
    assert await server_closed(record) == (1000, "")


@case
async def early_bytes_come_after_the_switch(to):
    path, record = noted("/echo")
    wire = await to.wire(path, early=frame(1, b"early") + frame(2, b"bird"))
    assert wire.status == wire.switched
    assert frames(await closed(wire, 13)) == [(0x81, b"early"), (0x82, b"bird"), (0x88, b"\x03\xe8")]


# --- Pings and pongs


def pings(length, who):
    async def answered(to):
        visitor = await to.visit(f"/ping/{length}" if who == "server" else "/echo")
        if who == "server":
            assert await visitor.recv() == "answered"
        else:
            await visitor.ping(b"p" * length)
        await visitor.close()

    add(f"a_ping_of_{length}_bytes_by_the_{who}", answered)


for length, who in itertools.product((0, 125), ("visitor", "server")):
    pings(length, who)


@case
async def pings_between_fragments(to):
    visitor = await to.visit("/echo")
    await visitor.send(b"one", b"two", b"three", between=lambda: visitor.ping(b"between"))
    assert await visitor.recv() == b"onetwothree"
    await visitor.close()


@case
async def pongs_that_nobody_asked_for(to):
    visitor = await to.visit("/pong")
    await visitor.pong(b"")
    await visitor.pong(b"x" * 125)
    await visitor.send("still here")
    assert await visitor.recv() == "still here"
    await visitor.close()


# --- Closing


def closes(code, who):
    async def arrives(to):
        reason = f"reason {code} äöü 🚇"
        if who == "server":
            visitor = await to.visit(f"/close/{code}/{urllib.parse.quote(reason)}")
            assert await visitor.ended() == (code, reason)
        else:
            path, record = noted("/echo")
            visitor = await to.visit(path)
            await visitor.close(code, reason)
            assert await server_closed(record) == (code, reason)

    add(f"close_{code}_by_the_{who}", arrives)


for code, who in itertools.product((1000, 1001, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 4999), ("visitor", "server")):
    closes(code, who)


@case
async def the_longest_reason(to):
    path, record = noted("/echo")
    visitor = await to.visit(path)
    await visitor.close(1000, "r" * 123)
    assert await server_closed(record) == (1000, "r" * 123)
    visitor = await to.visit("/close/1000/" + "r" * 123)
    assert await visitor.ended() == (1000, "r" * 123)


@case
async def close_without_a_code_by_the_server(to):
    visitor = await to.visit("/close_without_code")
    assert (await visitor.ended())[0] == 1005


@case
async def close_without_a_code_by_the_visitor(to):
    path, record = noted("/echo")
    wire = await to.wire(path)
    await wire.send(frame(8))
    assert frames(await rest(wire)) == [(0x88, b"")]
    await wire.close()
    assert await server_closed(record) == (1005, "")


# --- What is wrong reaches the server as it is, and its answer the visitor


def refused(name, data, code):
    async def by_the_server(to):
        path, record = noted("/echo")
        wire = await to.wire(path)
        await wire.send(data)
        got = frames(await rest(wire))
        await wire.close()
        assert got[-1][0] == 0x88 and int.from_bytes(got[-1][1][:2], "big") == code, got
        await server_closed(record)

    add(f"refused_with_{code}_{name}", by_the_server)


refused("invalid_utf8", frame(1, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited"), 1007)
refused("invalid_utf8_in_a_later_fragment", frame(1, b"good", fin=False) + frame(0, b"\xff\xfe"), 1007)
refused("utf8_that_is_cut", frame(1, b"\xe2\x82"), 1007)
refused("an_overlong_slash", frame(1, b"\xc0\xaf"), 1007)
refused("reserved_bit_1", frame(1, b"x", bits=0x40), 1002)
refused("reserved_bit_2", frame(1, b"x", bits=0x20), 1002)
refused("reserved_bit_3", frame(2, b"x", bits=0x10), 1002)
for opcode in (3, 7, 11, 15):
    refused(f"reserved_opcode_{opcode}", frame(opcode, b"x"), 1002)
refused("a_ping_in_fragments", frame(9, b"x", fin=False), 1002)
refused("a_ping_that_is_too_long", frame(9, b"x" * 126), 1002)
refused("a_continuation_of_nothing", frame(0, b"x"), 1002)
refused("a_message_within_a_message", frame(1, b"x", fin=False) + frame(1, b"y"), 1002)
refused("a_frame_without_mask", frame(1, b"x", mask=b""), 1002)
refused("a_close_of_one_byte", frame(8, b"\x03"), 1002)
for code in (0, 999, 1005, 1006, 2999, 5000):
    refused(f"close_code_{code}", frame(8, code.to_bytes(2, "big")), 1002)


@case
async def what_a_visitor_may_not_get_arrives_as_it_is(to):
    """The tunnel has no view of frames: the visitor judges them."""
    path, record = noted("/echo")
    wire = await to.wire(path)
    await eventually("the server is there", lambda: record() and record().socket)
    odd = frame(0xB, b"what?", bits=0x70, mask=b"") + b"\x81\x02\xff\xfe"
    record().socket.transport.write(odd)
    assert await closed(wire, len(odd)) == odd + b"\x88\x02\x03\xe8"


# --- Extensions and subprotocols

OFFERS = [
    "permessage-deflate",
    "permessage-deflate; client_max_window_bits",
    "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
    "permessage-deflate; server_max_window_bits=10",
    "x-unknown; a=1, permessage-deflate",
]


def deflated(text):
    squeeze = zlib.compressobj(wbits=-9)
    data = squeeze.compress(text) + squeeze.flush(zlib.Z_SYNC_FLUSH)
    return frame(1, data[:-4], bits=0x40)


def deflate(number, offer):
    async def untouched(to):
        said = []
        for carrier in (to.straight, to.carrier):
            path, record = noted("/echo")
            wire = await carrier.open(path, [("sec-websocket-extensions", offer)])
            sent = deflated(b"over and over " * 50)
            await wire.send(sent)
            got = await closed(wire, 10)
            await server_closed(record)
            socket = record().socket
            assert socket.request.headers["Sec-WebSocket-Extensions"] == offer
            assert sent + CLOSE in socket.wire_in
            said.append((wire.fields.get("sec-websocket-extensions"), got))
        assert said[0] == said[1]
        assert said[1][0].startswith("permessage-deflate"), said
        # The server compressed too: its frame has the bit.
        assert frames(said[1][1])[0][0] == 0xC1

    add(f"deflate_offer_{number}", untouched)


for number, offer in enumerate(OFFERS):
    deflate(number, offer)


@case
async def no_extension_is_offered(to):
    path, record = noted("/echo")
    wire = await to.wire(path)
    await wire.send(frame(1, b"plain"))
    assert frames(await closed(wire, 7))[0] == (0x81, b"plain")
    assert "sec-websocket-extensions" not in wire.fields
    assert "Sec-WebSocket-Extensions" not in record().socket.request.headers


def subprotocol(name, offered, chosen):
    async def negotiated(to):
        visitor = await to.visit("/echo", subprotocols=offered)
        assert visitor.subprotocol == chosen, visitor.subprotocol
        await visitor.close()

    add(f"subprotocol_{name}", negotiated)


subprotocol("none", None, None)
subprotocol("one", ["chat.v1"], "chat.v1")
subprotocol("of_two", ["chat.v1", "chat.v2"], "chat.v2")
subprotocol("with_others", ["x", "chat.v1", "y"], "chat.v1")


@case
async def a_subprotocol_that_the_server_has_not(to):
    """It says no, and that is an ordinary answer."""
    wire = await to.wire("/echo", [("sec-websocket-protocol", "nothing.v9")])
    assert wire.status == 400, wire.status
    await wire.close()


# --- How it ends without a close


@case
async def the_visitor_is_done_without_a_close(to):
    path, record = noted("/echo")
    wire = await to.wire(path)
    await wire.send(frame(1, b"hello"))
    await wire.end()
    assert frames(await rest(wire))[0] == (0x81, b"hello")
    assert (await server_closed(record))[0] == 1006
    await wire.close()


@case
async def the_visitor_breaks_off(to):
    path, record = noted("/echo")
    wire = await to.wire(path)
    await wire.send(frame(1, b"hello"))
    assert await wire.recv() == frame(1, b"hello", mask=b"")
    await wire.abort()
    assert (await server_closed(record))[0] == 1006


@case
async def the_server_is_done_without_a_close(to):
    visitor = await to.visit("/half_close")
    assert await visitor.recv() == "the last word"
    assert (await visitor.ended())[0] == 1006


@case
async def the_server_breaks_off(to):
    visitor = await to.visit("/abort")
    await visitor.send("now")
    assert (await visitor.ended())[0] == 1006


# --- Many, and much


@case
async def two_hundred_at_once(to):
    """All are open before any says something; a connection of HTTP/2 takes 128."""
    carriers = [type(to.carrier)(to.carrier.address, to.carrier.host) for _ in range(2)]
    visitors = await asyncio.gather(
        *(to.visitor.open(carriers[0], "/echo") for _ in range(1)), *(to.visitor.open(carriers[1], "/echo") for _ in range(1))
    )
    visitors += await asyncio.gather(*(to.visitor.open(carriers[n % 2], "/echo") for n in range(198)))

    async def talk(number, visitor):
        for turn in range(3):
            await visitor.send(f"{turn} of {number}")
            assert await visitor.recv() == f"{turn} of {number}"
        await visitor.close()

    await asyncio.gather(*(talk(number, visitor) for number, visitor in enumerate(visitors)))
    for carrier in carriers:
        await carrier.close()


async def still(look):
    """What a figure comes to once it rises no more."""
    last, since = look(), 0
    while since < 20:
        await asyncio.sleep(0.05)
        since = since + 1 if look() == last else 0
        last = look()
    return last


@case
async def a_visitor_that_does_not_read_stops_the_server(to):
    path, record = noted("/flood")
    wire = await to.wire(path)
    await eventually("the server sends", lambda: record() and record().sent)
    stopped = await still(lambda: record().sent)
    # What sockets and windows hold, and no more: a message is 64 KiB.
    print(f"# stopped after {stopped} messages")
    assert stopped < 64 * 16, stopped
    # It goes on when the visitor reads, and nothing is missing.
    data, number = b"", 0
    while number < stopped + 100:
        data += await wire.recv()
        while len(data) >= 65546:
            assert data[:2] == b"\x82\x7f" and data[10:65546] == number.to_bytes(8, "big") * 8192
            data, number = data[65546:], number + 1
    await wire.abort()
    await server_closed(record)


@case
async def a_server_that_does_not_read_stops_the_visitor(to):
    path, record = noted("/deaf")
    visitor = await to.visit(path)
    await eventually("the server is there", lambda: record() and hasattr(record(), "go"))
    count = 1600
    record().expected, sent = count * 65536, 0

    async def send():
        nonlocal sent
        for _ in range(count):
            await visitor.send(b"x" * 65536)
            sent += 1

    sending = asyncio.create_task(send())
    stopped = await still(lambda: sent)
    print(f"# stopped after {stopped} messages")
    assert 0 < stopped < 64 * 16, stopped
    record().go.set()
    await sending
    assert await visitor.recv() == "all"
    await visitor.close()


async def something_to_look_at(to):
    visitor = await to.visit("/echo", deflate=True)
    for message in ("hello", bytes(range(3))):
        await visitor.send(message)
        assert await visitor.recv() == message
    await visitor.send("in ", "pieces")
    assert await visitor.recv() == "in pieces"
    await visitor.ping(b"are you there")
    await visitor.close(4001, "seen enough")


async def main(kind, only=None):
    async with start() as server:
        port = server.sockets[0].getsockname()[1]
        edge, host = (await told(port)).split()
        address, _, edge_port = edge.rpartition(":")
        to = To(kind, (address, int(edge_port)), host, port)
        cases = only and [(only, something_to_look_at)]
        code = await run(to, cases=cases)
        await to.carrier.close()
        return code


sys.exit(asyncio.run(main(*sys.argv[1:])))
