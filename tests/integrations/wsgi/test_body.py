"""A body that an authority is shown first, over WSGI: what is read and kept, and who is not waited for."""

import io
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.tls_server import certificate

from meshlib.core.authz.body import BodyWanted, Found, Shown, Unread
from meshlib_wsgi.body import Body

WHOLE, PART = BodyWanted(10), BodyWanted(10, partial=True)


class Input:
    """A server's, which never ends by itself: to read beyond `data` would be to wait for ever."""

    def __init__(self, data: bytes) -> None:
        self.left = data

    def read(self, size: int = -1) -> bytes:
        assert 0 < size <= len(self.left), "waits for ever"
        found, self.left = self.left[:size], self.left[size:]
        return found


def sized(data: bytes, length: str = "") -> dict[str, Any]:
    return {"CONTENT_LENGTH": length or str(len(data)), "wsgi.input": Input(data)}


def coded(data: bytes, *, terminated: bool = True) -> dict[str, Any]:
    return {
        "HTTP_TRANSFER_ENCODING": "chunked",
        "wsgi.input": io.BytesIO(data),
        "wsgi.input_terminated": terminated,
    }


@pytest.mark.parametrize(
    ("environ", "whole", "part"),
    [
        (lambda: sized(b"abc"), Shown(b"abc", True, 3), Shown(b"abc", True, 3)),
        (lambda: sized(b"0123456789"), *[Shown(b"0123456789", True, 10)] * 2),
        (lambda: sized(b"0123456789abc"), Unread.TOO_LARGE, Shown(b"0123456789", False, 10)),
        (lambda: coded(b"abc"), *[Shown(b"abc", True, 3)] * 2),
        (lambda: coded(b"0123456789"), *[Shown(b"0123456789", True, 10)] * 2),
        (lambda: coded(b"0123456789abc"), Unread.TOO_LARGE, Shown(b"0123456789", False, 11)),
        (lambda: coded(b""), *[Shown(b"", True, 0)] * 2),
        (lambda: coded(b"abc", terminated=False), *[Unread.NO_LENGTH] * 2),
        (lambda: coded(b"abcdef") | {"CONTENT_LENGTH": "3"}, *[Shown(b"abcdef", True, 6)] * 2),
        (lambda: sized(b"", "9" * 30), *[Unread.NO_LENGTH] * 2),
        (lambda: sized(b"", "x"), *[Unread.NO_LENGTH] * 2),
        (lambda: sized(b""), None, None),
        (lambda: {"wsgi.input": Input(b"")}, None, None),
        (lambda: {"wsgi.input": Input(b""), "CONTENT_LENGTH": ""}, None, None),
    ],
)
def test_what_is_shown(environ: Callable[[], dict[str, Any]], whole: Found, part: Found) -> None:
    assert (Body(environ()).read(WHOLE), Body(environ()).read(PART)) == (whole, part)


def test_the_application_gets_a_whole_body_that_ends() -> None:
    environ = sized(b"abc")
    body = Body(environ)
    assert body.read(WHOLE) == body.read(BodyWanted(3)) == Shown(b"abc", True, 3)
    assert body.restore()
    assert environ["wsgi.input"].read() == b"abc"
    assert environ["wsgi.input"].read(1) == b""


def test_what_nobody_has_read_stays_as_it_is() -> None:
    environ = sized(b"abc")
    before = environ["wsgi.input"]
    assert not Body(environ).restore()
    assert environ["wsgi.input"] is before


LINES = b"one\ntwo is longer\nthree\n\nend"


@pytest.mark.parametrize("shown", [1, 4, 6, 19, len(LINES) - 1])
@pytest.mark.parametrize(
    "how",
    [
        lambda file: file.read(),
        lambda file: file.read(-1) + file.read(None),
        lambda file: list(iter(lambda: file.read(5), b"")),
        list,
        lambda file: list(iter(file.readline, b"")),
        lambda file: list(iter(lambda: file.readline(3), b"")),
        lambda file: file.readlines(),
        lambda file: [file.readlines(7), file.readlines(1), file.readlines(None)],
    ],
)
def test_what_was_shown_in_part_is_read_as_if_it_had_not_been(shown: int, how: Callable[[Any], Any]) -> None:
    environ = {"CONTENT_LENGTH": str(len(LINES)), "wsgi.input": io.BytesIO(LINES)}
    body = Body(environ)
    assert body.read(BodyWanted(shown, partial=True)) == Shown(LINES[:shown], False, shown)
    body.restore()
    assert how(environ["wsgi.input"]) == how(io.BytesIO(LINES))


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, dict[str, Any]]]:
    """A client's end, and the environ of a request of it with ten bytes of body."""
    theirs, ours = socket.socketpair()
    with theirs, ours, ours.makefile("rb") as file:
        yield theirs, {"CONTENT_LENGTH": "10", "wsgi.input": file, "werkzeug.socket": ours}


def test_who_is_too_slow_is_not_waited_for(connection: tuple[socket.socket, dict[str, Any]]) -> None:
    connection[0].sendall(b"abc")
    assert Body(connection[1], 0.05).read(WHOLE) is Unread.TOO_SLOW


def test_who_is_too_slow_in_tls_is_not_waited_for(tmp_path: Path) -> None:
    chain, key = certificate(tmp_path)
    served, trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=chain)
    served.load_cert_chain(chain, key)
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as threads:

        def serve() -> Found:
            with (
                listening.accept()[0] as accepted,
                served.wrap_socket(accepted, server_side=True) as ours,
                ours.makefile("rb") as file,
            ):
                environ = {"CONTENT_LENGTH": "10", "wsgi.input": file, "gunicorn.socket": ours}
                return Body(environ, 0.05).read(WHOLE)

        found = threads.submit(serve)
        with (
            socket.create_connection(listening.getsockname()) as plain,
            trusted.wrap_socket(plain, server_hostname="localhost") as theirs,
        ):
            theirs.sendall(b"abc")
            assert found.result(5) is Unread.TOO_SLOW


def test_who_leaves_is_not_asked_about(connection: tuple[socket.socket, dict[str, Any]]) -> None:
    connection[0].sendall(b"abc")
    connection[0].shutdown(socket.SHUT_WR)
    assert Body(connection[1]).read(WHOLE) is Unread.GONE


def test_a_connection_that_breaks_is_somebody_who_left() -> None:
    class Broken:
        def read(self, size: int) -> bytes:
            raise ConnectionResetError

    for environ in (sized(b"", "5"), coded(b"")):
        assert Body(environ | {"wsgi.input": Broken()}).read(PART) is Unread.GONE
