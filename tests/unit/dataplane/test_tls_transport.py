"""A protocol over TLS, on a wire in memory: what it hears, what leaves, and how it ends."""

import asyncio
import ssl
from typing import Any

import pytest
from support.small_ca import SmallCa

from meshlib.core.mtls import ClientTls, InboundMode, ServerTls
from meshlib.dataplane.tls import Contexts
from meshlib.dataplane.tls_session import RECORD, Session
from meshlib.dataplane.tls_transport import Secured, shaken

REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"
PAGE = "spiffe://cluster.local/ns/default/sa/productpage"


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self, above: Secured) -> None:
        super().__init__()
        self.above = above
        self.written: list[bytes] = []
        self.stuck = 0
        """Bytes that the peer does not take."""
        self.reading = True
        self.ended = ""
        self.limits: tuple[int | None, int | None] = (None, None)
        above.connection_made(self)

    def write(self, data: Any) -> None:
        if data:
            self.written.append(bytes(data))

    def take(self) -> bytes:
        """What was written since."""
        found = b"".join(self.written)
        self.written.clear()
        return found

    def get_write_buffer_size(self) -> int:
        return self.stuck

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return 1, 2

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.limits = high, low

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return bool(self.ended)

    def close(self) -> None:
        self.ended = self.ended or "closed"
        if not self.stuck:
            self._lose()

    def abort(self) -> None:
        self.ended = "aborted"
        self._lose()

    def _lose(self) -> None:
        asyncio.get_running_loop().call_soon(self.above.connection_lost, None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default


class Heard(asyncio.Protocol):
    """What a protocol heard."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.events.append(data)

    def eof_received(self) -> None:
        self.events.append("eof")

    def connection_lost(self, error: Exception | None) -> None:
        self.events.append(("lost", type(error).__name__))

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")


class Pair:
    """A server's transport and protocol, and the client's end that talks to it."""

    def __init__(self, ca: SmallCa, client: SmallCa | None = None, **options: Any) -> None:
        ours, theirs = (client or ca).held(PAGE), ca.held(REVIEWS)
        asking = Contexts(lambda: ours).client(ClientTls())
        asking.load_verify_locations(cadata=ca.pem)
        serving = Contexts(lambda: theirs).server(ServerTls(InboundMode.STRICT))
        self.client = Session(asking, name="reviews")
        self.heard = Heard()
        self.secured = Secured(
            Session(serving, server_side=True), self.heard, **({"gathers": False} | options)
        )
        self.wire = Wire(self.secured)

    def shake(self) -> "Pair":
        """The handshake."""
        done = False
        while not done or self.wire.written:
            done = done or self.client.shake()
            self.arrive(self.client.outgoing())
            self.client.receive(self.wire.take())
        return self

    def arrive(self, data: bytes) -> None:
        """Bytes come from the network."""
        self.secured.get_buffer(-1)[: len(data)] = data
        self.secured.buffer_updated(len(data))

    def say(self, data: bytes) -> None:
        """The client's bytes arrive."""
        self.arrive(self.client.seal(data))

    def said(self) -> bytes:
        """What the client reads of what was written."""
        self.client.receive(self.wire.take())
        found = b""
        while piece := self.client.next():
            found += piece
        return found


@pytest.fixture(scope="module")
def ca() -> SmallCa:
    return SmallCa()


async def turn(count: int = 3) -> None:
    """Some turns of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_transport_whose_wire_has_gone_is_closing(ca: SmallCa) -> None:
    """Who writes on hears of it in the same turn of the loop."""
    pair = Pair(ca).shake()
    assert not pair.secured.is_closing()
    pair.wire.abort()
    assert pair.secured.is_closing()
    await turn()


async def test_the_protocol_hears_once_the_handshake_is_done(ca: SmallCa) -> None:
    pair = Pair(ca)
    assert pair.heard.events == []
    assert not pair.secured.shaken.done()
    pair.shake()
    await shaken(pair.secured)
    pair.say(b"hello")
    assert pair.heard.events == ["made", b"hello"]
    pair.heard.transport.write(bytearray(b"and to you"))
    assert pair.said() == b"and to you"
    assert "open" in repr(pair.secured)


async def test_what_comes_with_the_handshakes_end_is_not_lost(ca: SmallCa) -> None:
    pair = Pair(ca)
    pair.client.shake()
    pair.arrive(pair.client.outgoing())
    pair.client.receive(pair.wire.take())
    assert pair.client.shake()
    pair.arrive(pair.client.outgoing() + pair.client.seal(b"at once"))
    assert pair.heard.events == ["made", b"at once"]


async def test_a_failed_handshake_is_told_to_the_peer_and_not_to_the_protocol(ca: SmallCa) -> None:
    pair = Pair(ca, client=SmallCa("other"))
    with pytest.raises(ssl.SSLError):
        pair.shake().client.next()
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        await shaken(pair.secured)
    await turn()
    assert pair.heard.events == []
    assert pair.wire.ended == "aborted"


async def test_a_peer_that_does_not_take_the_alert_is_cut_off(ca: SmallCa) -> None:
    pair = Pair(ca)
    pair.wire.stuck = 7
    pair.arrive(b"\x16\x03\x01\x00\x05nonsense")
    assert pair.wire.ended == "closed"
    assert pair.wire.take()
    await asyncio.wait([pair.secured.shaken])
    await turn(5)
    assert pair.wire.ended == "aborted"
    assert pair.heard.events == []


async def test_a_peer_that_leaves_in_the_handshake(ca: SmallCa) -> None:
    pair = Pair(ca)
    assert pair.secured.eof_received() is None  # type: ignore[func-returns-value]
    with pytest.raises(ConnectionResetError):
        await shaken(pair.secured)
    assert pair.heard.events == []


async def test_who_waits_no_longer_has_no_connection(ca: SmallCa) -> None:
    pair = Pair(ca)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await shaken(pair.secured)
    await turn()
    assert pair.wire.ended == "aborted"
    pair.arrive(b"late")
    assert pair.heard.events == []


async def test_writes_of_one_turn_leave_as_one_record(ca: SmallCa) -> None:
    pair = Pair(ca, gathers=True).shake()
    pair.secured.write(b"head ")
    pair.secured.write(b"body")
    assert pair.wire.written == []
    assert pair.secured.get_write_buffer_size() == 9
    await turn()
    assert len(pair.wire.written) == 1
    assert pair.said() == b"head body"
    assert pair.secured.get_write_buffer_size() == 0


async def test_what_fills_a_record_does_not_wait(ca: SmallCa) -> None:
    pair = Pair(ca, gathers=True).shake()
    for _ in range(8):
        pair.secured.write(b"x" * (RECORD // 4))
    assert len(pair.wire.written) == 2
    assert pair.said() == b"x" * (2 * RECORD)


async def test_without_gathering_each_write_leaves_at_once(ca: SmallCa) -> None:
    pair = Pair(ca).shake()
    pair.secured.writelines([b"a", b"b"])
    pair.secured.write(b"")
    pair.secured.write(b"c")
    assert len(pair.wire.written) == 2
    assert pair.said() == b"abc"


async def test_who_pauses_is_given_nothing(ca: SmallCa) -> None:
    pair = Pair(ca).shake()
    pair.heard.events.clear()
    pair.secured.pause_reading()
    assert not pair.wire.reading
    assert not pair.secured.is_reading()
    pair.say(b"one")
    pair.say(b"two")
    assert pair.heard.events == []
    pair.secured.resume_reading()
    await turn()
    assert pair.heard.events == [b"one", b"two"]
    assert pair.wire.reading
    assert pair.secured.is_reading()


async def test_who_pauses_in_the_middle_gets_the_rest_later(ca: SmallCa) -> None:
    pair = Pair(ca).shake()
    events = pair.heard.events
    events.clear()

    class Slow(Heard):
        def data_received(self, data: bytes) -> None:
            events.append(data)
            pair.secured.pause_reading()

    pair.secured.set_protocol(Slow())
    assert isinstance(pair.secured.get_protocol(), Slow)
    pair.arrive(pair.client.seal(b"one") + pair.client.seal(b"two"))
    assert events == [b"one"]
    pair.secured.resume_reading()
    await turn()
    assert events == [b"one", b"two"]
    assert not pair.wire.reading


async def test_an_error_of_the_protocol_ends_the_connection(ca: SmallCa) -> None:
    pair = Pair(ca).shake()
    loop = asyncio.get_running_loop()
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: told.append(context))

    class Broken(Heard):
        def data_received(self, data: bytes) -> None:
            raise ValueError(data)

    pair.secured.set_protocol(Broken())
    pair.secured.pause_reading()
    pair.say(b"one")
    pair.secured.resume_reading()
    await turn()
    assert pair.wire.ended == "aborted"
    assert [type(one["exception"]) for one in told] == [ValueError]


async def test_an_end_sends_what_is_left_and_says_so(ca: SmallCa) -> None:
    pair = Pair(ca, gathers=True).shake()
    pair.secured.write(b"last")
    pair.secured.close()
    assert pair.secured.is_closing()
    pair.secured.write(b"too late")
    assert pair.said() == b"last"
    assert pair.client.next() is None
    assert pair.client.farewell()
    assert pair.wire.ended == "closed"
    await turn()
    assert pair.heard.events == ["made", ("lost", "NoneType")]
    pair.secured.close()
    pair.secured.abort()
    assert pair.secured.get_write_buffer_size() == 0


async def test_a_peer_that_does_not_take_the_rest_is_cut_off(ca: SmallCa) -> None:
    pair = Pair(ca, patience=0.001).shake()
    pair.wire.stuck = 1000
    pair.secured.close()
    assert pair.wire.ended == "closed"
    async with asyncio.timeout(60):
        while pair.wire.ended != "aborted":
            await asyncio.sleep(0)
    await turn()
    assert pair.heard.events[-1] == ("lost", "NoneType")


async def test_the_peers_farewell_is_an_end(ca: SmallCa) -> None:
    pair = Pair(ca).shake()
    pair.arrive(pair.client.seal(b"last") + pair.client.farewell())
    await turn()
    assert pair.heard.events == ["made", b"last", "eof", ("lost", "NoneType")]
    assert pair.wire.written, "a farewell is answered"


async def test_a_peer_that_leaves_without_a_word_is_an_end(ca: SmallCa) -> None:
    pair = Pair(ca).shake()
    pair.secured.eof_received()
    pair.secured.eof_received()
    await turn()
    assert pair.heard.events == ["made", "eof", ("lost", "NoneType")]
    assert pair.wire.written == []


async def test_a_forged_record_ends_the_connection(ca: SmallCa) -> None:
    pair = Pair(ca).shake()
    sealed = bytearray(pair.client.seal(b"hello"))
    sealed[-1] ^= 1
    pair.arrive(bytes(sealed))
    assert pair.wire.take(), "the alert"
    pair.arrive(pair.client.seal(b"more"))
    pair.secured.write(b"more")
    await turn()
    assert pair.heard.events == ["made", ("lost", "SSLError")]
    assert pair.wire.written == []


async def test_flow_control_is_that_of_the_transport_beneath(ca: SmallCa) -> None:
    pair = Pair(ca).shake()
    pair.heard.events.clear()
    pair.secured.pause_writing()
    pair.secured.resume_writing()
    assert pair.heard.events == ["pause", "resume"]
    pair.secured.set_write_buffer_limits(10, 5)
    assert pair.wire.limits == (10, 5)
    assert pair.secured.get_write_buffer_limits() == (1, 2)
    pair.wire.stuck = 4
    assert pair.secured.get_write_buffer_size() == 4
    assert not pair.secured.can_write_eof()


async def test_what_is_known_of_the_connection(ca: SmallCa) -> None:
    known = Pair(ca).shake().secured.get_extra_info
    assert ("URI", PAGE) in known("peercert")["subjectAltName"]
    assert known("cipher")[1] == "TLSv1.3"
    assert known("sslcontext") is known("ssl_object").context
    assert known("peername") == ("127.0.0.1", 1)
    assert known("nothing", 7) == 7
