"""DNS queries by UDP, with dnspython: what was asked is answered, and nothing is asked twice.

    dns_queries.py HOST PORT

Each case prints how long it took.
"""
import asyncio, random, sys, time

import dns.asyncquery, dns.flags, dns.message, dns.rcode

from cases import case, run

QUERIES = 1000
AT_ONCE = 32
# Far longer than any answer takes: a query without one counts as lost.
PATIENCE = 10


class Socket(asyncio.DatagramProtocol):
    """One source port, with queries in flight by their id."""

    def __init__(self):
        self.waiting = {}

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, _):
        answer = dns.message.from_wire(data)
        self.waiting.pop(answer.id).set_result(answer)

    async def ask(self, query):
        query.id = next(number for number in iter(lambda: random.randrange(1 << 16), None) if number not in self.waiting)
        self.waiting[query.id] = asyncio.get_running_loop().create_future()
        self.transport.sendto(query.to_wire())
        return await asyncio.wait_for(self.waiting[query.id], PATIENCE)


def address(number):
    return f"10.0.{number >> 8}.{number & 255}"


async def all_are_answered(ask):
    places, began = asyncio.Semaphore(AT_ONCE), time.monotonic()

    async def one(number):
        async with places:
            query = dns.message.make_query(f"h{number}.example.test", "A")
            answer = await ask(query)
            assert query.is_response(answer) and answer.rcode() == dns.rcode.NOERROR
            assert [record.address for record in answer.answer[0]] == [address(number)]

    done = await asyncio.gather(*map(one, range(QUERIES)), return_exceptions=True)
    lost = [repr(error) for error in done if error is not None]
    assert not lost, f"{len(lost)} of {QUERIES} failed: {lost[:3]}"
    print(f"# {QUERIES} of {QUERIES} in {time.monotonic() - began:.2f} s", flush=True)


@case
async def from_one_port(where, port):
    loop = asyncio.get_running_loop()
    transport, socket = await loop.create_datagram_endpoint(Socket, remote_addr=(where, port))
    await all_are_answered(socket.ask)
    transport.close()


@case
async def from_a_new_port_each(where, port):
    """As resolvers do: each query is a flow of its own."""
    await all_are_answered(lambda query: dns.asyncquery.udp(query, where, timeout=PATIENCE, port=port))


@case
async def answers_of_many_sizes(where, port):
    for size in (200, 1000, 2000, 3000, 3900):
        query = dns.message.make_query(f"t{size}.example.test", "TXT", use_edns=0, payload=4096)
        answer = await dns.asyncquery.udp(query, where, timeout=PATIENCE, port=port)
        assert not answer.flags & dns.flags.TC
        assert sum(map(len, answer.answer[0][0].strings)) == size
        assert size < len(answer.to_wire()) <= 4096


@case
async def without_edns_a_long_answer_is_truncated(where, port):
    query = dns.message.make_query("t3000.example.test", "TXT")
    answer = await dns.asyncquery.udp(query, where, timeout=PATIENCE, port=port)
    assert answer.flags & dns.flags.TC
    answer, by_tcp = await dns.asyncquery.udp_with_fallback(query, where, timeout=PATIENCE, port=port)
    assert by_tcp and sum(map(len, answer.answer[0][0].strings)) == 3000


@case
async def a_name_that_is_not_there(where, port):
    query = dns.message.make_query("nothing.example.test", "A")
    answer = await dns.asyncquery.udp(query, where, timeout=PATIENCE, port=port)
    assert answer.rcode() == dns.rcode.NXDOMAIN


sys.exit(asyncio.run(run(sys.argv[1], int(sys.argv[2]))))
