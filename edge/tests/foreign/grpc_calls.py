"""gRPC calls through a tunnel, with Google's implementation at both ends; no generated code.

    grpc_calls.py calls|away|refused|inspected

Told HOST:PORT NAME: the edge, and the tunnel's host.
"""
import asyncio, os, sys, time

import grpc

from cases import case, eventually, run, told

MIB = 1 << 20
OPTIONS = [("grpc.max_receive_message_length", 32 * MIB), ("grpc.max_send_message_length", 32 * MIB)]
# What the server saw of calls, by the word they came with.
seen = {}


class Handler(grpc.GenericRpcHandler):
    """Messages are bytes; a method is a function below."""

    def service(self, call):
        kind, function = METHODS.get(call.method.rpartition("/")[2], (None, None))
        return kind and kind(function)


async def echo(message, context):
    return message


async def count(message, context):
    for number in range(int(message)):
        yield b"%d" % number


async def total(messages, context):
    length = number = 0
    async for message in messages:
        length, number = length + len(message), number + 1
    return b"%d bytes in %d" % (length, number)


async def chat(messages, context):
    async for message in messages:
        yield b"re: " + message


async def hang(messages, context):
    """Says one thing and then nothing until the call is over."""
    word = dict(context.invocation_metadata())["word"]
    seen[word] = ["began", context.time_remaining()]
    try:
        yield b"began"
        await asyncio.sleep(60)
        seen[word] = ["slept"]
    except (asyncio.CancelledError, GeneratorExit):
        # The latter where the call was over before its first message was taken.
        seen[word] += ["cancelled"]
        raise


async def deaf(message, context):
    """As `hang`, with no answer at all."""
    async for _ in hang(None, context):
        pass


async def fail(message, context):
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, message.decode())


async def fail_late(message, context):
    yield b"one"
    await context.abort(grpc.StatusCode.DATA_LOSS, "after one")


async def metadata(messages, context):
    given = [(key, value) for key, value in context.invocation_metadata() if key.startswith("x-")]
    await context.send_initial_metadata([("x-first", "1"), *given])
    async for message in messages:
        yield message
    context.set_trailing_metadata([("x-last", "2"), ("x-last-bin", bytes(range(256)))])


async def die(message, context):
    yield b"still here"
    await asyncio.Event().wait()


METHODS = {
    "Echo": (grpc.unary_unary_rpc_method_handler, echo),
    "Count": (grpc.unary_stream_rpc_method_handler, count),
    "Total": (grpc.stream_unary_rpc_method_handler, total),
    "Chat": (grpc.stream_stream_rpc_method_handler, chat),
    "Hang": (grpc.stream_stream_rpc_method_handler, hang),
    "Deaf": (grpc.unary_unary_rpc_method_handler, deaf),
    "Fail": (grpc.unary_unary_rpc_method_handler, fail),
    "FailLate": (grpc.unary_stream_rpc_method_handler, fail_late),
    "Metadata": (grpc.stream_stream_rpc_method_handler, metadata),
    "Die": (grpc.unary_stream_rpc_method_handler, die),
}


def unary(channel, method):
    return channel.unary_unary(f"/uniroute.Test/{method}")


def server_streams(channel, method):
    return channel.unary_stream(f"/uniroute.Test/{method}")


def client_streams(channel, method):
    return channel.stream_unary(f"/uniroute.Test/{method}")


def both_stream(channel, method):
    return channel.stream_stream(f"/uniroute.Test/{method}")


async def failed(call):
    """What a call that has to fail fails with."""
    try:
        got = await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError(f"no failure, but {got!r}")


@case
async def a_unary_call(channel):
    for message in (b"", b"one", bytes(range(256)) * 100):
        assert await unary(channel, "Echo")(message) == message


@case
async def the_server_streams(channel):
    got = [message async for message in server_streams(channel, "Count")(b"1000")]
    assert got == [b"%d" % number for number in range(1000)]
    assert [message async for message in server_streams(channel, "Count")(b"0")] == []


@case
async def the_client_streams(channel):
    async def messages():
        for _ in range(1000):
            yield b"x" * 100

    assert await client_streams(channel, "Total")(messages()) == b"100000 bytes in 1000"


@case
async def both_stream_in_lockstep(channel):
    call = both_stream(channel, "Chat")()
    for number in range(100):
        await call.write(b"%d" % number)
        assert await call.read() == b"re: %d" % number
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() == grpc.StatusCode.OK


@case
async def a_deadline_ends_the_call_at_the_server(channel):
    began = time.monotonic()
    error = await failed(unary(channel, "Deaf")(b"", timeout=0.5, metadata=[("word", "late")]))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - began < 5
    await eventually("the server sees it", lambda: "cancelled" in seen["late"])
    assert 0 < seen["late"][1] < 0.6, seen["late"]


@case
async def the_client_cancels(channel):
    call = both_stream(channel, "Hang")(metadata=[("word", "cancel")])
    assert await call.read() == b"began"
    assert "cancelled" not in seen["cancel"]
    call.cancel()
    await eventually("the server sees it", lambda: "cancelled" in seen["cancel"])
    assert seen["cancel"][1] is None, "no deadline was set"


@case
async def the_client_cancels_before_any_answer(channel):
    call = unary(channel, "Deaf")(b"", metadata=[("word", "early")])
    await eventually("the call is there", lambda: "early" in seen)
    call.cancel()
    await eventually("the server sees it", lambda: "cancelled" in seen["early"])


@case
async def an_error_without_a_message_before_it(channel):
    text = "nicht gefunden: äöü € 100 % 🚇\nnext line"
    error = await failed(unary(channel, "Fail")(text.encode()))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == text, error.details()


@case
async def an_error_after_a_message(channel):
    call = server_streams(channel, "FailLate")(b"")
    assert await call.read() == b"one"
    error = await failed(call.read())
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "after one")


@case
async def metadata_both_ways(channel):
    given = [("x-text", "value with spaces"), ("x-many", "one"), ("x-many", "two"), ("x-data-bin", bytes(range(256)))]
    call = both_stream(channel, "Metadata")(metadata=given)
    # They are here before any message is.
    got = await call.initial_metadata()
    # What the tunnel tells the server of its visitor comes back with the others.
    ours = [pair for pair in got if pair[0].startswith("x-") and not pair[0].startswith("x-forwarded-")]
    assert ours == [("x-first", "1"), *given], got
    await call.write(b"message")
    assert await call.read() == b"message"
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    trailing = [pair for pair in await call.trailing_metadata() if pair[0].startswith("x-")]
    assert trailing == [("x-last", "2"), ("x-last-bin", bytes(range(256)))], trailing


@case
async def ten_megabytes_both_ways(channel):
    message = os.urandom(10 * MIB)
    assert await unary(channel, "Echo")(message) == message


@case
async def an_unknown_method(channel):
    assert (await failed(unary(channel, "Nothing")(b""))).code() == grpc.StatusCode.UNIMPLEMENTED


@case
async def two_hundred_calls_at_once(channel):
    """Those that the edge takes no stream for yet wait in the channel, which is the client's work."""

    async def one(number):
        call = both_stream(channel, "Chat")()
        for turn in range(3):
            await call.write(b"%d of %d" % (turn, number))
            assert await call.read() == b"re: %d of %d" % (turn, number)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK

    await asyncio.gather(*map(one, range(200)))


@case
async def a_thousand_short_calls(channel):
    call = unary(channel, "Echo")
    places = asyncio.Semaphore(200)

    async def one(number):
        async with places:
            assert await call(b"%d" % number) == b"%d" % number

    await asyncio.gather(*map(one, range(1000)))


@case
async def many_calls_cancelled_at_once(channel):
    """A call beside them goes on, on the same connection."""
    beside = both_stream(channel, "Chat")()
    await beside.write(b"before")
    assert await beside.read() == b"re: before"
    words = [f"many-{number}" for number in range(200)]
    calls = [both_stream(channel, "Hang")(metadata=[("word", word)]) for word in words]
    # As many as the edge takes at a time: the others begin, and are over, as these are cancelled.
    began = lambda: [word for word in words if word in seen]
    await eventually("most calls have begun", lambda: len(began()) > 100)
    for call in calls:
        call.cancel()
    await eventually("the server sees it", lambda: all("cancelled" in seen[word] for word in began()))
    await beside.write(b"after")
    assert await beside.read() == b"re: after"
    await beside.done_writing()
    assert await beside.read() is grpc.aio.EOF


async def the_server_goes_away(channel, server):
    call = server_streams(channel, "Die")(b"")
    assert await call.read() == b"still here"
    server.kill()
    error = await failed(call.read())
    assert error.code() == grpc.StatusCode.UNAVAILABLE, error


async def it_stays_away(channel, server):
    await server.wait()
    error = await failed(unary(channel, "Echo")(b""))
    assert error.code() == grpc.StatusCode.UNAVAILABLE, error


async def no_grpc_here(channel):
    error = await failed(unary(channel, "Echo")(b""))
    print("#", error.code(), error.details(), file=sys.stderr)
    assert error.code() in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED), error


async def serve():
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers([Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port


def channel_to(line):
    edge, name = line.split()
    return grpc.aio.insecure_channel(edge, options=[*OPTIONS, ("grpc.default_authority", name)])


async def calls():
    server, port = await serve()
    async with channel_to(await told(port)) as channel:
        code = await run(channel)
    await server.stop(0)
    return code


async def away():
    """The server is a process of its own, and is killed."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-B", __file__, "serve", stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.PIPE
    )
    try:
        port = int(await child.stdout.readline())
        async with channel_to(await told(port)) as channel:
            return await run(channel, child, cases=[(f.__name__, f) for f in (the_server_goes_away, it_stays_away)])
    finally:
        if child.returncode is None:
            child.kill()


async def only_serve():
    """Until standard input ends, as it does with whoever started this."""
    server, port = await serve()
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(0)


async def refused():
    """The local server speaks HTTP/1.1 only."""

    async def answer(reader, writer):
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 7\r\n\r\nno such")
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with channel_to(await told(server.sockets[0].getsockname()[1])) as channel:
        return await run(channel, cases=[("no_grpc_here", no_grpc_here)])


async def an_echo(channel):
    assert await unary(channel, "Echo")(b"hello") == b"hello"


async def a_compressed_echo(channel):
    assert await unary(channel, "Echo")(b"z" * 1000, compression=grpc.Compression.Gzip) == b"z" * 1000


async def a_count(channel):
    assert [message async for message in server_streams(channel, "Count")(b"3")] == [b"0", b"1", b"2"]


async def a_late_failure(channel):
    call = server_streams(channel, "FailLate")(b"")
    assert await call.read() == b"one"
    assert await call.code() == grpc.StatusCode.DATA_LOSS


async def a_failure(channel):
    error = await failed(unary(channel, "Fail")(b"no"))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION


async def inspected():
    """A few calls, one after the other, for somebody to look at."""
    server, port = await serve()
    cases = (an_echo, a_compressed_echo, a_count, a_late_failure, a_failure)
    async with channel_to(await told(port)) as channel:
        code = await run(channel, cases=[(f.__name__, f) for f in cases])
    await server.stop(0)
    return code


MODES = {"inspected": inspected, "calls": calls, "away": away, "serve": only_serve, "refused": refused}
sys.exit(asyncio.run(MODES[sys.argv[1]]()))
