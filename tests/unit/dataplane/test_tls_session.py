"""TLS in memory: what goes in at one end comes out at the other, and nothing else does."""

import ssl

import pytest
from support.small_ca import SmallCa

from meshlib.core.mtls import ClientTls, InboundMode, ServerTls
from meshlib.dataplane.tls import Contexts
from meshlib.dataplane.tls_session import RECORD, Session

REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"
PAGE = "spiffe://cluster.local/ns/default/sa/productpage"
STRICT = ServerTls(InboundMode.STRICT, ("cluster.local",))


@pytest.fixture(scope="module")
def ca() -> SmallCa:
    return SmallCa()


def ends(ca: SmallCa, asking: SmallCa | None = None) -> tuple[Session, Session]:
    """A client's and a server's, before the handshake; `asking`: whose certificate the client has."""
    ours, theirs = (asking or ca).held(PAGE), ca.held(REVIEWS)
    client = Contexts(lambda: ours).client(ClientTls())
    client.load_verify_locations(cadata=ca.pem)
    return Session(client, name="reviews"), Session(Contexts(lambda: theirs).server(STRICT), server_side=True)


def shake(client: Session, server: Session) -> None:
    """Until both are done."""
    done = [False, False]
    while not all(done):
        for index, (one, other) in enumerate(((client, server), (server, client))):
            done[index] = done[index] or one.shake()
            other.receive(one.outgoing())


def test_each_end_gets_what_the_other_sends(ca: SmallCa) -> None:
    client, server = ends(ca)
    shake(client, server)
    for sender, receiver in ((client, server), (server, client)):
        assert receiver.next() is None
        receiver.receive(sender.seal(b"hello"))
        assert receiver.next() == b"hello"
        assert receiver.quiet
        assert receiver.next() is None


def test_what_is_long_comes_in_records(ca: SmallCa) -> None:
    client, server = ends(ca)
    shake(client, server)
    data = bytes(range(256)) * (5 * RECORD // 256) + b"end"
    server.receive(client.seal(data))
    found = []
    while (piece := server.next()) is not None:
        found.append(piece)
        assert len(piece) <= RECORD
    assert b"".join(found) == data


def test_half_a_record_is_nothing_yet(ca: SmallCa) -> None:
    client, server = ends(ca)
    shake(client, server)
    sealed = client.seal(b"hello")
    for at in range(len(sealed)):
        server.receive(sealed[at : at + 1])
        assert server.next() == (b"hello" if at == len(sealed) - 1 else None)


def test_a_session_is_not_quiet_while_there_is_more(ca: SmallCa) -> None:
    client, server = ends(ca)
    shake(client, server)
    server.receive(client.seal(b"one") + client.seal(b"two"))
    assert server.next() == b"one"
    assert not server.quiet
    assert server.next() == b"two"
    assert server.quiet


def test_tickets_are_no_data(ca: SmallCa) -> None:
    client, server = ends(ca)
    shake(client, server)
    assert not client.quiet, "OpenSSL sends tickets with its end of the handshake"
    assert client.next() is None
    assert client.quiet


def test_a_farewell_is_an_end(ca: SmallCa) -> None:
    client, server = ends(ca)
    shake(client, server)
    server.receive(client.seal(b"last") + client.farewell())
    assert server.next() == b"last"
    assert server.next() == b""


def test_a_farewell_before_the_handshake_says_nothing(ca: SmallCa) -> None:
    client, _ = ends(ca)
    assert client.farewell() == b""


def test_what_was_changed_on_the_way_is_refused(ca: SmallCa) -> None:
    client, server = ends(ca)
    shake(client, server)
    sealed = bytearray(client.seal(b"hello"))
    sealed[-1] ^= 1
    server.receive(bytes(sealed))
    with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
        server.next()
    with pytest.raises(ssl.SSLError):
        server.seal(b"more")


def test_what_was_sent_twice_is_refused(ca: SmallCa) -> None:
    client, server = ends(ca)
    shake(client, server)
    sealed = client.seal(b"hello")
    server.receive(sealed + sealed)
    assert server.next() == b"hello"
    with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
        server.next()


def test_a_failed_handshake_says_why(ca: SmallCa) -> None:
    client, server = ends(ca, asking=SmallCa("other"))
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake(client, server)
    client.receive(server.outgoing())
    with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
        client.next()


def test_nothing_is_renegotiated(ca: SmallCa) -> None:
    client, server = ends(ca)
    for end in (client, server):
        assert end.tls.context.options & ssl.OP_NO_RENEGOTIATION
