"""A WebSocket's bytes between a visitor and an edge, over HTTP/1.1 and over HTTP/2 (RFC 8441)."""
import asyncio, base64, hashlib, os, socket, struct

import h2.config, h2.connection, h2.errors, h2.events, h2.exceptions, h2.settings

ACCEPT = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Http1:
    """Each WebSocket is a connection; the handshake is by hand, so that anything can be in it."""

    def __init__(self, address, host):
        self.address, self.host = address, host

    async def open(self, path, fields=(), early=b""):
        reader, writer = await asyncio.open_connection(*self.address)
        key = base64.b64encode(os.urandom(16))
        lines = [f"GET {path} HTTP/1.1", f"host: {self.host}", "connection: Upgrade", "upgrade: websocket"]
        lines += ["sec-websocket-version: 13", f"sec-websocket-key: {key.decode()}"]
        lines += [f"{name}: {value}" for name, value in fields]
        writer.write("".join(line + "\r\n" for line in [*lines, ""]).encode() + early)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        wire = Http1Wire(reader, writer, int(head[0].split()[1]), head[1:-2])
        if wire.status == 101:
            expected = base64.b64encode(hashlib.sha1(key + ACCEPT).digest()).decode()
            assert wire.fields["sec-websocket-accept"] == expected
        return wire

    async def close(self):
        pass


class Http1Wire:
    switched = 101

    def __init__(self, reader, writer, status, lines):
        self.reader, self.writer, self.status = reader, writer, status
        pairs = [line.split(":", 1) for line in lines]
        self.fields = {name.lower(): value.strip() for name, value in pairs}

    async def send(self, data):
        self.writer.write(data)
        await self.writer.drain()

    async def recv(self):
        return await self.reader.read(1 << 18)

    async def end(self):
        self.writer.write_eof()

    async def abort(self):
        """Closes with a reset."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def close(self):
        self.writer.close()


class Http2:
    """WebSockets share a connection."""

    def __init__(self, address, host):
        self.address, self.host = address, host
        self.streams, self.task = {}, None
        self.changed = asyncio.Condition()

    async def connect(self):
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.reader, self.writer = await asyncio.open_connection(*self.address)
        self.h2.initiate_connection()
        self.ready = asyncio.Event()
        self.task = asyncio.create_task(self.run())
        await self.flush()
        await self.ready.wait()

    async def flush(self):
        self.writer.write(self.h2.data_to_send())
        await self.writer.drain()

    async def run(self):
        try:
            while data := await self.reader.read(1 << 18):
                for event in self.h2.receive_data(data):
                    self.take(event)
                await self.flush()
                async with self.changed:
                    self.changed.notify_all()
        finally:
            for stream in self.streams.values():
                stream.lost()
            async with self.changed:
                self.changed.notify_all()

    def take(self, event):
        if isinstance(event, h2.events.RemoteSettingsChanged):
            setting = event.changed_settings.get(h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL)
            if setting is not None and setting.new_value == 1:
                self.ready.set()
        stream = self.streams.get(getattr(event, "stream_id", None))
        if stream:
            stream.take(event)

    async def open(self, path, fields=(), early=b""):
        if self.task is None:
            await self.connect()
        number = self.h2.get_next_available_stream_id()
        stream = self.streams[number] = Http2Wire(self, number)
        head = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http")]
        head += [(":authority", self.host), (":path", path), ("sec-websocket-version", "13"), *fields]
        self.h2.send_headers(number, head)
        if early:
            self.h2.send_data(number, early)
        await self.flush()
        await stream.until(lambda: stream.status is not None)
        return stream

    async def close(self):
        if self.task:
            self.task.cancel()
            self.writer.close()


class Http2Wire:
    switched = 200

    def __init__(self, connection, number):
        self.connection, self.number = connection, number
        self.status, self.fields, self.queue = None, {}, []
        self.ended, self.error, self.left = False, None, False

    def acknowledge(self, length):
        if length:
            self.connection.h2.acknowledge_received_data(length, self.number)

    def take(self, event):
        if isinstance(event, h2.events.ResponseReceived):
            self.fields = dict(event.headers)
            self.status = int(self.fields[":status"])
        elif isinstance(event, h2.events.DataReceived):
            if self.left:
                self.acknowledge(event.flow_controlled_length)
            else:
                self.queue.append((event.data, event.flow_controlled_length))
        elif isinstance(event, h2.events.StreamEnded):
            self.ended = True
        elif isinstance(event, h2.events.StreamReset):
            self.error = ConnectionResetError(f"reset with {event.error_code}")

    def lost(self):
        self.error = self.error or ConnectionResetError("the connection is over")

    async def until(self, look):
        async with self.connection.changed:
            await self.connection.changed.wait_for(lambda: look() or self.error)
        if not look() and self.error:
            raise self.error

    async def send(self, data):
        view, state = memoryview(data), self.connection.h2
        while view:
            if self.error:
                raise self.error
            await self.until(lambda: state.local_flow_control_window(self.number) > 0)
            size = min(state.local_flow_control_window(self.number), state.max_outbound_frame_size, len(view))
            state.send_data(self.number, bytes(view[:size]))
            view = view[size:]
            await self.connection.flush()

    async def recv(self):
        await self.until(lambda: self.queue or self.ended)
        if not self.queue:
            return b""
        data, length = self.queue.pop(0)
        # The window opens as bytes are taken, and not before.
        self.acknowledge(length)
        await self.connection.flush()
        return data

    async def end(self):
        self.connection.h2.end_stream(self.number)
        await self.connection.flush()

    async def abort(self):
        self.connection.h2.reset_stream(self.number, h2.errors.ErrorCodes.CANCEL)
        await self.connection.flush()

    async def close(self):
        self.left = True
        while self.queue:
            self.acknowledge(self.queue.pop(0)[1])
        if not self.error:
            try:
                await (self.end() if self.ended else self.abort())
            except h2.exceptions.ProtocolError:
                pass
