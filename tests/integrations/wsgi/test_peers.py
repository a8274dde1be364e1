"""Who calls a WSGI application whose server shakes hands itself, by the socket that it shows."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.small_ca import SmallCa

from meshlib.core.mtls import ServerTls
from meshlib.core.request import Peer
from meshlib.dataplane.tls import Contexts, Held
from meshlib_wsgi import peer_of
from meshlib_wsgi.peers import port_of

REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"
PAGE = "spiffe://cluster.local/ns/default/sa/productpage"


@pytest.fixture(scope="module")
def root() -> SmallCa:
    return SmallCa()


@pytest.fixture(scope="module")
def issuing(root: SmallCa) -> SmallCa:
    return SmallCa("issuing", root)


@contextlib.contextmanager
def shaken(server: ssl.SSLContext, client: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    """The server's end of a connection."""
    listening = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def call() -> None:
        with socket.create_connection(listening.getsockname(), 5) as plain, client.wrap_socket(plain):
            done.wait(10)

    caller = threading.Thread(target=call)
    caller.start()
    accepted, _ = listening.accept()
    try:
        with server.wrap_socket(accepted, server_side=True) as connection:
            yield connection
    finally:
        done.set()
        caller.join()
        listening.close()


def contexts(tmp_path: Path, shown: Held, roots: str, own: Held) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's, which trusts `roots`, and the client's, which shows `shown`."""
    found = []
    for side, held in ((ssl.PROTOCOL_TLS_SERVER, own), (ssl.PROTOCOL_TLS_CLIENT, shown)):
        file = tmp_path / f"{side.name}.pem"
        file.write_bytes(held.key_pem + held.chain_pem.encode())
        context = ssl.SSLContext(side)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(file)
        found.append(context)
    found[0].load_verify_locations(cadata=roots)
    found[0].verify_mode = ssl.CERT_REQUIRED
    return found[0], found[1]


def asked(connection: socket.socket, own: Held) -> tuple[Peer, int]:
    mesh = Contexts(lambda: own)
    environ: dict[str, Any] = {"gunicorn.socket": connection, "SERVER_PORT": "1", "REMOTE_ADDR": "9.9.9.9"}
    peer = peer_of(environ, lambda chain: mesh.vouched(ServerTls(trust_domains=("cluster.local",)), chain))
    return peer, port_of(environ)


def test_the_chain_is_checked_once_more(root: SmallCa, issuing: SmallCa, tmp_path: Path) -> None:
    own = issuing.held(REVIEWS)
    server, client = contexts(tmp_path, issuing.held(PAGE), root.pem, own)
    with shaken(server, client) as connection:
        peer, port = asked(connection, own)
        assert (peer.principal, peer.tls, peer.address[0]) == (PAGE, True, "127.0.0.1")
        assert port == peer.local[1] == connection.getsockname()[1]


def test_roots_of_the_servers_own_make_nobody_a_caller(
    root: SmallCa, issuing: SmallCa, tmp_path: Path
) -> None:
    other, own = SmallCa("other"), issuing.held(REVIEWS)
    server, client = contexts(tmp_path, other.held(PAGE), other.pem, own)
    with shaken(server, client) as connection:
        peer, _ = asked(connection, own)
        assert (peer.principal, peer.tls) == ("", True)


def test_plain_text_has_no_identity(issuing: SmallCa) -> None:
    one, other = socket.socketpair()
    with one, other:
        peer, port = asked(one, issuing.held(REVIEWS))
        assert (peer, port) == (Peer(("", 0), ("", 0)), 0)


def test_without_a_socket_the_servers_word_is_all() -> None:
    environ = {
        "REMOTE_ADDR": "10.0.0.7",
        "REMOTE_PORT": "4001",
        "SERVER_NAME": "reviews",
        "SERVER_PORT": "9080",
        "HTTP_X_FORWARDED_CLIENT_CERT": f"URI={PAGE}",
        "HTTP_MESHLIB.PEER": "forged",
        "wsgi.url_scheme": "http",
    }
    assert peer_of(environ, lambda _: PAGE) == Peer(("10.0.0.7", 4001), ("reviews", 9080))
    assert port_of(environ) == 9080
